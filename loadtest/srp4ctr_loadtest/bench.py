"""`make bench`: what a scored request costs, beside the bare ONNX Runtime run of the same graph in the same process run.

The service has one core and the loader another where there are two; no deadline can be missed, so that every request is
scored in full. CPU is the service's process as the kernel accounts it, its Redis apart, while a closed loop of several
connections keeps it busy; latencies are those of an open loop at half of the rate that this found. Once with users' states
out of Redis at every request, once with all of them in the near cache. Prints a table for people, then one JSON line.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import psutil

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.contract.http_types import ScoreResponse
from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.http_load import Load, closed_loop, open_loop
from srp4ctr_loadtest.subject import USERS, Subject

CANDIDATES = (50, 100, 500, 1000, 2000)
WARM_UP = 200
CONNECTIONS = 8
ROUNDS = 5
"""Of which the ones with the least CPU count: what a shared machine adds is never negative."""
OPEN_LOOP_S = 5.0
AIMS_MORE_MS = {("redis", 100): 0.35, ("redis", 500): 0.50, ("near", 100): 0.25, ("near", 500): 0.40}
"""What the service may cost besides the bare run, CPU milliseconds a request."""

States = Literal["redis", "near"]


@dataclass(frozen=True)
class Cost:
    """CPU of the bare run and of the service, milliseconds a request; requests a second of one core; latencies."""

    states: States
    candidates: int
    bare_cpu_ms: float
    server_cpu_ms: float
    rps: float
    open_loop_rps: float
    p50_ms: float
    p99_ms: float
    p999_ms: float

    @property
    def more_ms(self) -> float:
        """What the service costs besides the bare run."""
        return self.server_cpu_ms - self.bare_cpu_ms


class BareRun:
    """The scorer alone, on the core that the service has otherwise, item vectors gathered before."""

    def __init__(self, subject: Subject, candidates: int, runs: int) -> None:
        """Rounds are of so many runs."""
        bundle = subject.bundle
        generator = np.random.default_rng(0)
        vectors = bundle.items.vectors
        self._scorer = OnnxScorer(bundle, threads=1)
        self._context = bundle.transforms.encode_values("context", {}, "context")[None]
        batches = [vectors[generator.integers(len(vectors), size=candidates)] for _ in range(50)]
        self._inputs = zip(itertools.cycle(subject.states), itertools.cycle(batches), strict=False)
        self._runs = runs
        self.cpu_ms()

    def cpu_ms(self) -> float:
        """CPU milliseconds of a run, the mean of a round."""
        began = time.process_time()
        for state, batch in itertools.islice(self._inputs, self._runs):
            self._scorer(state, batch, self._context)
        return 1000 * (time.process_time() - began) / self._runs


def check(load: Load, candidates: int) -> None:
    """A cheaper answer than was asked for would make the service look fast."""
    assert set(load.statuses) == {200}, load.statuses
    answer = ScoreResponse.model_validate_json(load.last_body)
    assert answer.tier == "full", answer
    assert not answer.degraded, answer
    assert len(answer.scores) == candidates, answer


def measured(
    subject: Subject,
    states: States,
    candidates: int,
    url: str,
    server: psutil.Process,
    core: int,
    count: int,
) -> Cost:
    """Rounds of the bare run and of a closed loop in turns, so that both meet the same machine; then an open loop.

    The server has that core, and so has the bare run meanwhile.
    """
    requests = subject.requests(url, [candidates] * len(subject.users))
    with on_core(core):
        bare = BareRun(subject, candidates, max(100, count * 100 // candidates))
    closed_loop(url, requests, connections=CONNECTIONS, count=max(WARM_UP, len(requests)))
    alone, costs, rates = [], [], []
    for _ in range(ROUNDS):
        with on_core(core):
            alone.append(bare.cpu_ms())
        before = server.cpu_times()
        load = closed_loop(url, requests, connections=CONNECTIONS, count=count)
        after = server.cpu_times()
        check(load, candidates)
        costs.append(1000 * (after.user + after.system - before.user - before.system) / count)
        rates.append(load.rate)
    halved = open_loop(url, requests, connections=4 * CONNECTIONS, rate=max(rates) / 2, seconds=OPEN_LOOP_S)
    check(halved, candidates)
    latencies = halved.milliseconds(50, 99, 99.9)
    return Cost(states, candidates, min(alone), min(costs), max(rates), halved.rate, *latencies)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="a round (default: 1500)")
    parser.add_argument(
        "--candidates", type=int, nargs="*", default=CANDIDATES, help="(default: %(default)s)"
    )
    arguments = parser.parse_args()
    subject = Subject.active()
    available = sorted(os.sched_getaffinity(0))
    core = available[0]
    os.sched_setaffinity(0, available[-1:])
    costs = []
    kinds: tuple[tuple[States, int], ...] = (("redis", 0), ("near", USERS))
    for states, near_cache_users in kinds:
        # By its address, or the service would take the local Redis for its own, and stop it in the end.
        variables = {
            "SRP4CTR_NEAR_CACHE_USERS": str(near_cache_users),
            "SRP4CTR_REDIS_URL": subject.redis_url,
        }
        with running_service(free_port(), variables) as running:
            server = psutil.Process(running.pid)
            server.cpu_affinity([core])
            costs += [
                measured(subject, states, candidates, running.url, server, core, arguments.requests)
                for candidates in arguments.candidates
            ]
    _print(subject.version, costs)
    return 0


def _print(version: str, costs: Sequence[Cost]) -> None:
    print(f"POST /score against the bare ONNX Runtime run, model {version}, one core, one thread")
    print(
        f"{'states':>7} {'candidates':>10} {'bare CPU ms':>12} {'service':>8} {'more':>6} {'aim':>5} {'req/s':>7} | open loop "
        f"{'req/s':>6} {'p50 ms':>7} {'p99':>7} {'p99.9':>7}"
    )
    for one in costs:
        aim = AIMS_MORE_MS.get((one.states, one.candidates))
        print(
            f"{one.states:>7} {one.candidates:>10} {one.bare_cpu_ms:>12.3f} {one.server_cpu_ms:>8.3f} "
            f"{one.more_ms:>6.3f} {'' if aim is None else format(aim, '.2f'):>5} {one.rps:>7.0f} |           "
            f"{one.open_loop_rps:>6.0f} {one.p50_ms:>7.2f} {one.p99_ms:>7.2f} {one.p999_ms:>7.2f}"
        )
    rows = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(one).items()}
        for one in costs
    ]
    print(json.dumps({"benchmark": "score", "model": version, "connections": CONNECTIONS, "rows": rows}))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Srp4ctrError as error:
        sys.exit(f"bench: {error}")
