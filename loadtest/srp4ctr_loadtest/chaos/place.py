"""Where a run works: a var folder, and a Redis that nobody else has."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import redis

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import ENV_PREFIX, StoreSettings

HISTORY_EVENTS = 64
"""That are kept of a user: so few that the histories of those who act most are full soon."""


@dataclass(frozen=True)
class Place:
    """The folder and its settings; Redis's socket is elsewhere, where its path is short."""

    folder: Path
    socket: Path
    settings: StoreSettings

    @classmethod
    @contextlib.contextmanager
    def below(cls, folder: Path) -> Iterator[Self]:
        """The folder that the versions are in; what an earlier run left in Redis and in logs is removed.

        Raises ServiceNotReady while another run works there.
        """
        with (
            (folder / "lock").open("a") as lock,
            tempfile.TemporaryDirectory(prefix="srp4ctr-chaos-") as private,
        ):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServiceNotReady(f"another run works below {folder}") from None
            for name in ("redis", "logs"):
                shutil.rmtree(folder / name, ignore_errors=True)
                (folder / name).mkdir()
            socket = Path(private) / "redis.sock"
            settings = StoreSettings(
                var_dir=folder, redis_url=f"unix://{socket}", namespace="chaos", history_events=HISTORY_EVENTS
            )
            yield cls(folder, socket, settings)

    @property
    def keys(self) -> Keys:
        """The names of everything in Redis."""
        return Keys(self.settings.namespace)

    def client(self) -> redis.Redis:
        """A client for looking on while nothing is killed."""
        assert self.settings.redis_url is not None
        return connect(self.settings, self.settings.redis_url)

    def log(self, name: str) -> IO[bytes]:
        """A file for all that processes of that name say."""
        return (self.folder / "logs" / f"{name}.log").open("ab")

    def environment(self) -> dict[str, str]:
        """Of every command."""
        return environment(
            VAR_DIR=self.folder.absolute(),
            REDIS_URL=self.settings.redis_url,
            NAMESPACE=self.settings.namespace,
            HISTORY_EVENTS=self.settings.history_events,
            LOG_LEVEL="warning",
            # So long that a busy machine is not taken for a lost Redis: answers that are made of states can be wrong.
            REDIS_SCORE_TIMEOUT_MS=500,
            REFRESH_CLAIM_AFTER_S=2,
            REFRESH_CLAIM_EVERY_S=0.5,
        )


def environment(**settings: object) -> dict[str, str]:
    """This process's, with these settings and no others, whatever those are of whoever started it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return kept | {f"{ENV_PREFIX}{name}": str(value) for name, value in settings.items()}
