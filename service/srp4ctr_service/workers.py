"""Several worker processes behind one socket, kept alive by uvicorn's supervisor; each is a whole service of one thread.

SIGHUP replaces them one by one, SIGTTIN and SIGTTOU add and remove one.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from functools import partial

from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from srp4ctr_service import logs
from srp4ctr_service.app import create_app
from srp4ctr_service.server import server_config
from srp4ctr_service.settings import Settings
from srp4ctr_service.telemetry import SHARED_VARIABLE


def run_workers(settings: Settings, redis_url: str, listener: socket.socket, workers: int) -> bool:
    """Serve until SIGINT or SIGTERM; whether all workers could start."""
    with _shared_metrics():
        app = partial(_worker, settings, redis_url)
        supervisor = Multiprocess(server_config(app, settings, workers=workers), [listener])
        supervisor.run()
        return all(process.exitcode != STARTUP_FAILURE for process in supervisor.processes)


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder in which the workers count together, so that each of them shows the metrics of all."""
    with tempfile.TemporaryDirectory(prefix="srp4ctr-metrics-") as folder:
        os.environ[SHARED_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[SHARED_VARIABLE]


def _worker(settings: Settings, redis_url: str) -> ASGIApp:
    logs.configure(settings.log_level)
    # A worker that outlived its supervisor would hold the port, and nobody would restart it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, signal.raise_signal, signal.SIGTERM)
    return create_app(settings, redis_url)
