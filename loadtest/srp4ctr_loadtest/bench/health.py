"""How long GET /livez takes while the model is asked for more than it can do."""

import threading
import time
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr_loadtest.bench.findings import Finding, Part
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.http_load import closed_loop

CANDIDATES = 2000
CONNECTIONS = 8
"""So many candidates that wait are just not too many to be taken."""
LOAD_S = 15
EVERY_S = 0.05
AIM_MS = 50.0
LIMIT_S = 4.0
"""Twice that after which the container's health check takes the process for dead."""


def measure(place: Place) -> Part:
    """The longest of many, each over a connection of its own as a health check makes it."""
    with place.service(None) as service:
        subject = place.workload.subject
        requests = subject.requests(service.url, [CANDIDATES] * len(subject.users))
        taken: list[float] = []
        ended = threading.Event()
        thread = threading.Thread(target=_look, args=[service.url, ended, taken])
        closed_loop(service.url, requests, connections=CONNECTIONS, count=CONNECTIONS)
        thread.start()
        try:
            give_up_at = time.monotonic() + place.scaled(LOAD_S)
            while time.monotonic() < give_up_at:
                load = closed_loop(service.url, requests, connections=CONNECTIONS, count=10 * CONNECTIONS)
                if set(load.statuses) != {200}:
                    raise Srp4ctrError(f"not every request was answered: {dict(load.statuses)}")
        finally:
            ended.set()
            thread.join()
    if not taken:
        raise Srp4ctrError("GET /livez was not answered")
    what = f"the longest of {len(taken)} GET /livez while {CONNECTIONS} requests for {CANDIDATES:,} candidates always wait"
    return Part([Finding("livez", what, 1000 * max(taken), "ms", AIM_MS)])


def _look(url: str, ended: threading.Event, taken: list[float]) -> None:
    while not ended.wait(EVERY_S):
        connection = HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)
        began = time.perf_counter()
        try:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            was_answered = answer.status == 200
        except (OSError, HTTPException):
            was_answered = False
        # What is refused or not answered counts as if it had taken as long as anybody waits.
        taken.append(time.perf_counter() - began if was_answered else LIMIT_S)
        connection.close()
