"""Runs `srp4ctr serve` as a process of its own: for the demonstration and the benchmarks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException

from srp4ctr.contract.errors import ServiceNotReady

COMMAND = (sys.executable, "-m", "srp4ctr.cli")
"""`srp4ctr`, by this Python."""
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0


@dataclass(frozen=True)
class RunningService:
    """Where it answers, and which process it is."""

    url: str
    pid: int


def free_port(preferred: int = 0) -> int:
    """The preferred port of 127.0.0.1, or any other where it is taken.

    Whoever starts the same server again and again there prefers none: while it is away, others would find it free.
    """
    for port in (preferred, 0):
        with socket.socket() as probe:
            # As uvicorn does it: a port that was closed a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise ServiceNotReady("127.0.0.1 has no free port")


@contextlib.contextmanager
def running_service(port: int, variables: Mapping[str, str] | None = None) -> Iterator[RunningService]:
    """The service, ready, with this process's settings and further variables; stopped on leaving.

    Raises ServiceNotReady.
    """
    url = f"http://127.0.0.1:{port}"
    command = [*COMMAND, "serve", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, env={**os.environ, **(variables or {})}) as process:
        try:
            give_up_at = time.monotonic() + START_LIMIT_S
            while not _ready(url):
                if process.poll() is not None:
                    raise ServiceNotReady("the service ended before it was ready; its log stands above")
                if time.monotonic() > give_up_at:
                    raise ServiceNotReady(
                        f"the service was not ready in {START_LIMIT_S:.0f} s; srp4ctr doctor says why"
                    )
                time.sleep(0.1)
            yield RunningService(url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 -- our own address
            ready: bool = answer.status == 200
    except (OSError, HTTPException):
        return False
    return ready
