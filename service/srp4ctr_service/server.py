"""How uvicorn serves the app, in one process or as one of several workers."""

import resource
from collections.abc import Callable
from functools import partial

from starlette.types import ASGIApp
from uvicorn import Config

from srp4ctr_service.bounded_http import BoundedHttp
from srp4ctr_service.settings import Settings

WORKER_LIMIT_S = 60
FILES_OF_ITS_OWN = 128
"""That a process may have open besides its connections."""


def server_config(app: ASGIApp | Callable[[], ASGIApp], settings: Settings, workers: int = 1) -> Config:
    """uvicorn's configuration; where there are several workers, `app` makes the app of one."""
    return Config(
        app,
        factory=workers > 1,
        workers=workers,
        loop="uvloop",
        http=partial(  # type: ignore[arg-type]
            BoundedHttp,
            arrival_s=settings.arrival_timeout_ms / 1000,
            # Twice what is taken of one: a client that sends all before it reads shall read why it was refused.
            max_unread=2 * settings.max_body_bytes,
            max_connections=_most_connections(settings),
            spares=set(),
        ),
        ws="none",
        lifespan="on",
        # Request lines are logged by the app itself.
        log_config=None,
        access_log=False,
        # Nothing here asks who the client is.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.graceful_stop_s,
        # Also the time that a worker gets to start when it replaces another, which loads a bundle first.
        timeout_worker_healthcheck=WORKER_LIMIT_S,
    )


def _most_connections(settings: Settings) -> int:
    """As many as the settings say, and as the process may have files open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    return max(1, min(settings.max_connections, files - FILES_OF_ITS_OWN))
