"""What a worker takes when it is asked nothing, and the memory that one more worker needs."""

import signal
import time

import numpy as np

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr_loadtest.bench.findings import Finding, Part
from srp4ctr_loadtest.bench.place import Place, Service
from srp4ctr_loadtest.cpu_clock import cpu_seconds
from srp4ctr_loadtest.http_load import closed_loop
from srp4ctr_loadtest.metrics import scraped

IDLE_S = 20
AIM_IDLE = 1.0
"""Per cent of a core."""
AIM_WORKER_MB = 110.0
WORKERS = 2
CANDIDATES = 2000
CONNECTIONS = 32
AT_WORK_S = 0.1
"""CPU by which a worker has answered some of what was asked."""
TRIES = 20
START_LIMIT_S = 60.0


def measure_idle(place: Place) -> Part:
    """CPU of a worker that has answered requests and now waits for more."""
    with place.service(None) as service:
        _ask(place, service)
        time.sleep(1)
        seconds = IDLE_S / 4 if place.quick else IDLE_S
        before, began = service.tree.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        used = (service.tree.cpu_seconds() - before) / (time.monotonic() - began)
    what = f"CPU of an idle worker over {seconds:g} s, of a core"
    return Part([Finding("idle", what, 100 * used, "%", AIM_IDLE)])


def measure_memory(place: Place) -> Part:
    """PSS of the whole tree with three workers less that with two, all of which have answered their largest requests."""
    with place.service(None, {"SRP4CTR_WORKERS": str(WORKERS)}) as service:
        _all_at_work(place, service, WORKERS)
        before = _pss(service)
        # uvicorn's supervisor starts one more.
        service.tree.root.send_signal(signal.SIGTTIN)
        _all_at_work(place, service, WORKERS + 1)
        after = _pss(service)
    further = (after - before) / 1e6
    return Part(
        [Finding("worker_pss", f"memory (PSS) of worker {WORKERS + 1}", further, "MB", AIM_WORKER_MB)],
        detail={"pss_mb": {str(WORKERS): before / 1e6, str(WORKERS + 1): after / 1e6}},
    )


def _pss(service: Service) -> int:
    return sum(int(process.memory_full_info().pss) for process in service.tree.processes())


def _all_at_work(place: Place, service: Service, workers: int) -> None:
    """Ask until so many workers have answered; the kernel chooses whose a connection is."""
    name = f'srp4ctr_model_info{{version="{place.workload.subject.version}"}}'
    give_up_at = time.monotonic() + START_LIMIT_S
    while scraped(service.url).get(name) != workers:
        if time.monotonic() > give_up_at:
            raise Srp4ctrError(f"{workers} workers were not ready in {START_LIMIT_S:.0f} s")
        time.sleep(0.2)
    before = {process.pid: cpu_seconds(process.pid) for process in service.tree.processes()}
    for _ in range(TRIES):
        _ask(place, service)
        used = [cpu_seconds(pid) - began for pid, began in before.items()]
        if sum(seconds > AT_WORK_S for seconds in used) >= workers:
            return
    raise Srp4ctrError(f"not all of {workers} workers were given a connection")


def _ask(place: Place, service: Service) -> None:
    """Requests of random sizes, the largest among them."""
    drawn = CANDIDATES ** np.random.default_rng(0).random(CONNECTIONS)
    requests = place.workload.subject.requests(service.url, [CANDIDATES, *drawn.astype(int).tolist()])
    load = closed_loop(
        service.url, requests, connections=CONNECTIONS // 4, count=place.scaled(20 * CONNECTIONS, CONNECTIONS)
    )
    if set(load.statuses) != {200}:
        raise Srp4ctrError(f"not every request was answered: {dict(load.statuses)}")
