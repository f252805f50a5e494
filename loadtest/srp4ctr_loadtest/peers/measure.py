"""Measures one contestant: closed loops for CPU and throughput, open loops for latencies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from srp4ctr_loadtest.http_load import Load, Request, closed_loop, open_loop
from srp4ctr_loadtest.peers.asking import ask, check_equal
from srp4ctr_loadtest.peers.contestants import Contestant, Running
from srp4ctr_loadtest.peers.protocols import Question, Scores, WrongAnswer
from srp4ctr_loadtest.peers.results import Row

CONNECTIONS = 8
OPEN_CONNECTIONS = 4 * CONNECTIONS
LEAST_FOR_P999 = 5000
"""Requests."""
ROUNDS = 3
"""Of which the one with the least CPU counts, and that with the most requests a second: what else runs on a machine only
ever adds to the one and takes from the other."""


@dataclass(frozen=True)
class Plan:
    """Requests a closed loop's round, seconds of an open loop or None for none, and the cores of server and loader."""

    requests: int
    open_loop_s: float | None
    server_core: int
    loader_core: int


@dataclass(frozen=True)
class Exam:
    """Questions by number of candidates, and their right answers."""

    questions: Mapping[int, Sequence[Question]]
    expected: Mapping[int, Sequence[Scores]]

    def passed_by(self, contestant: Contestant, running: Running) -> None:
        """Raise WrongAnswer unless every score is the expected one."""
        for candidates, questions in self.questions.items():
            found = ask(running.url, contestant.protocol, questions)
            check_equal(found, self.expected[candidates])


def at_own_rate(contestant: Contestant, exam: Exam, plan: Plan) -> list[Row]:
    """A row for each number of candidates, its open loop at half of the rate that the closed loop found.

    Raises WrongAnswer, and ServiceNotReady where it cannot be started.
    """
    rows = []
    with contestant.start(plan.server_core) as running:
        exam.passed_by(contestant, running)
        for candidates, questions in exam.questions.items():
            requests = _wire(contestant, running, questions)
            row = _closed(contestant, running, requests, candidates, plan)
            assert row.rps is not None
            if plan.open_loop_s is not None:
                row = _open(contestant, running, requests, replace(row, rate_rps=row.rps / 2), plan)
            rows.append(row)
        running.check()
    return rows


def at_common_rates(
    contestant: Contestant, exam: Exam, plan: Plan, known: Sequence[Row], rates: Mapping[int, float]
) -> list[Row]:
    """The known rows again with an open loop at the rate that is for their number of candidates.

    Not those whose own rate this is.
    """
    wanted = [row for row in known if row.candidates is not None and row.rate_rps != rates[row.candidates]]
    if not wanted:
        return []
    rows = []
    with contestant.start(plan.server_core) as running:
        exam.passed_by(contestant, running)
        for row in wanted:
            assert row.candidates is not None
            requests = _wire(contestant, running, exam.questions[row.candidates])
            closed_loop(running.url, requests, connections=CONNECTIONS, count=len(requests))
            asked = replace(row, rate_rps=rates[row.candidates])
            rows.append(_open(contestant, running, requests, asked, plan))
        running.check()
    return rows


def _wire(contestant: Contestant, running: Running, questions: Sequence[Question]) -> list[Request]:
    return [contestant.protocol.call(question).to(running.url) for question in questions]


def _closed(
    contestant: Contestant, running: Running, requests: Sequence[Request], candidates: int, plan: Plan
) -> Row:
    closed_loop(running.url, requests, connections=CONNECTIONS, count=len(requests))
    costs, rates = [], []
    for _ in range(ROUNDS):
        before = running.tree.cpu_seconds()
        load = closed_loop(running.url, requests, connections=CONNECTIONS, count=plan.requests)
        costs.append(1000 * (running.tree.cpu_seconds() - before) / plan.requests)
        rates.append(load.rate)
        _check(contestant, load, candidates)
    return Row(contestant.name, candidates, min(costs), max(rates))


def _open(contestant: Contestant, running: Running, requests: Sequence[Request], row: Row, plan: Plan) -> Row:
    assert row.rate_rps is not None
    assert row.candidates is not None
    assert plan.open_loop_s is not None
    loads = []
    for _ in range(ROUNDS):
        load = open_loop(
            running.url, requests, connections=OPEN_CONNECTIONS, rate=row.rate_rps, seconds=plan.open_loop_s
        )
        _check(contestant, load, row.candidates)
        loads.append(load)
    # Of each percentile the median: what else runs on a machine holds up one round or another.
    p50, p99 = np.median([load.milliseconds(50, 99) for load in loads], axis=0).tolist()
    together = Load("open", latencies=[one for load in loads for one in load.latencies])
    # Of fewer, a request or two would decide it.
    p999 = together.milliseconds(99.9)[0] if len(together.latencies) >= LEAST_FOR_P999 else None
    return replace(row, p50_ms=p50, p99_ms=p99, p999_ms=p999)


def _check(contestant: Contestant, load: Load, candidates: int) -> None:
    if set(load.statuses) != {200}:
        raise WrongAnswer(f"not all were answered: {dict(load.statuses)}")
    contestant.protocol.scores(200, load.last_body, candidates)
