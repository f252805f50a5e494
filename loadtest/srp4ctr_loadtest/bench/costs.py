"""What a scored request costs, beside the bare ONNX Runtime run of the same graph in the same process run.

CPU is the service's, its Redis apart, while a closed loop of several connections keeps it busy; latencies are those of an
open loop at half of the rate that this found. Once with users' states out of Redis at every request, once with all of them
in the near cache. No deadline can be missed, so that every request is scored in full.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.contract.http_types import ScoreResponse
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr_loadtest.bench.findings import DIGITS, Finding, Part
from srp4ctr_loadtest.bench.place import Place, Service
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.http_load import Load, closed_loop, open_loop
from srp4ctr_loadtest.subject import USERS, Subject

LINE = (100, 500, 1000)
BEYOND = 2000
CANDIDATES = (50, *LINE, BEYOND)
CONNECTIONS = 8
ROUNDS = 5
"""Of which the ones with the least CPU count: what a shared machine adds is never negative."""
REQUESTS = 1500
"""A round, of up to 500 candidates; of more, fewer, so that no round is longer."""
OPEN_LOOP_S = 5
AIMS_MORE_MS = {("redis", 100): 0.35, ("redis", 500): 0.50, ("near", 100): 0.25, ("near", 500): 0.40}
"""What the service may cost besides the bare run, CPU milliseconds a request."""
AIM_BEYOND = 1.10
"""CPU at 2,000 candidates over the line through 100 to 1,000."""

States = Literal["redis", "near"]
KINDS: tuple[tuple[States, int], ...] = (("redis", 0), ("near", USERS))


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


def measure(place: Place, candidates: Sequence[int] = CANDIDATES) -> Part:
    """Every kind of states with every number of candidates."""
    costs = []
    for states, near_cache_users in KINDS:
        with place.service(near_cache_users) as service:
            costs += [_measured(place, service, states, count) for count in candidates]
    rows = [
        {
            name: round(value, DIGITS) if isinstance(value, float) else value
            for name, value in asdict(one).items()
        }
        for one in costs
    ]
    return Part(findings(costs), _table(costs), {"connections": CONNECTIONS, "rows": rows})


def checked(load: Load, candidates: int) -> Load:
    """The load itself; raises Srp4ctrError at a cheaper answer than was asked for, which would make the service look fast."""
    if set(load.statuses) != {200}:
        raise Srp4ctrError(
            f"not every request was answered: {dict(load.statuses)}; is the machine very busy?"
        )
    answer = ScoreResponse.model_validate_json(load.last_body)
    if answer.tier != "full" or answer.degraded or len(answer.scores) != candidates:
        raise Srp4ctrError(
            f"an answer is cheaper than asked: tier {answer.tier}, degraded {answer.degraded}, "
            f"{len(answer.scores)} scores for {candidates} candidates"
        )
    return load


def _measured(place: Place, service: Service, states: States, candidates: int) -> Cost:
    """Rounds of the bare run and of a closed loop in turns, so that both meet the same machine; then an open loop."""
    subject, url = place.workload.subject, service.url
    requests = subject.requests(url, [candidates] * len(subject.users))
    count = place.scaled(REQUESTS * 500 // max(candidates, 500), 50)
    with on_core(place.server_core):
        bare = BareRun(subject, candidates, max(50, count * 100 // candidates))
    closed_loop(url, requests, connections=CONNECTIONS, count=len(requests))
    alone, costs, rates = [], [], []
    for _ in range(ROUNDS):
        with on_core(place.server_core):
            alone.append(bare.cpu_ms())
        before = service.tree.cpu_seconds()
        load = checked(closed_loop(url, requests, connections=CONNECTIONS, count=count), candidates)
        costs.append(1000 * (service.tree.cpu_seconds() - before) / count)
        rates.append(load.rate)
    halved = open_loop(
        url,
        requests,
        connections=4 * CONNECTIONS,
        rate=max(rates) / 2,
        seconds=place.scaled(OPEN_LOOP_S),
    )
    latencies = checked(halved, candidates).milliseconds(50, 99, 99.9)
    return Cost(states, candidates, min(alone), min(costs), max(rates), halved.rate, *latencies)


def findings(costs: Sequence[Cost]) -> list[Finding]:
    """What there are aims for."""
    return [*_more(costs), *_beyond(costs)]


def _more(costs: Sequence[Cost]) -> list[Finding]:
    return [
        Finding(
            f"more.{one.states}.{one.candidates}",
            f"CPU a request besides the bare run, {one.candidates} candidates, "
            + ("a state read from Redis" if one.states == "redis" else "a near-cache hit"),
            one.more_ms,
            "ms",
            AIMS_MORE_MS[one.states, one.candidates],
        )
        for one in costs
        if (one.states, one.candidates) in AIMS_MORE_MS
    ]


def _beyond(costs: Sequence[Cost]) -> list[Finding]:
    """CPU at 2,000 candidates over what the least-squares line through the smaller ones gives there."""
    found = []
    for states, _ in KINDS:
        by_count = {one.candidates: one.server_cpu_ms for one in costs if one.states == states}
        if by_count.keys() >= {*LINE, BEYOND}:
            slope, start = np.polyfit(LINE, [by_count[count] for count in LINE], 1)
            ratio = by_count[BEYOND] / float(start + slope * BEYOND)
            found.append(
                Finding(
                    f"line.{states}",
                    f"CPU at {BEYOND:,} candidates over the line through {LINE[0]} to {LINE[-1]:,}, {states}",
                    ratio,
                    "x",
                    AIM_BEYOND,
                )
            )
    return found


def _table(costs: Sequence[Cost]) -> str:
    lines = [
        "| states | candidates | bare run, CPU ms | service | more | aim | req/s | at half: req/s | p50 ms | p99 | p99.9 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in costs:
        aim = AIMS_MORE_MS.get((one.states, one.candidates))
        cells = [
            one.states,
            f"{one.candidates:,}",
            *(f"{value:.3f}" for value in (one.bare_cpu_ms, one.server_cpu_ms, one.more_ms)),
            "" if aim is None else f"{aim:.2f}",
            f"{one.rps:,.0f}",
            f"{one.open_loop_rps:,.0f}",
            *(f"{value:.2f}" for value in (one.p50_ms, one.p99_ms, one.p999_ms)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
