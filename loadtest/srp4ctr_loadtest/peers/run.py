"""The comparison: our service's answers first, then everyone in turn, at their own rates and at one that all can take."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.peers import baselines
from srp4ctr_loadtest.peers.asking import ask
from srp4ctr_loadtest.peers.baselines import BEFORE, FLOOR, Histories
from srp4ctr_loadtest.peers.catalogue import Peer
from srp4ctr_loadtest.peers.contestants import Contestant, own_services, peer_contestant
from srp4ctr_loadtest.peers.machine import about, redis_on
from srp4ctr_loadtest.peers.measure import Exam, Plan, at_common_rates, at_own_rate
from srp4ctr_loadtest.peers.protocols import WrongAnswer
from srp4ctr_loadtest.peers.results import WRONG, Results, Row
from srp4ctr_loadtest.peers.workload import MADE_UP, Workload

CANDIDATES = (50, 100, 500)
BEFORE_USERS = (f"{MADE_UP}0", f"{MADE_UP}1")
FAULTS = (Srp4ctrError, OSError, HTTPException)
"""What may go wrong with a server; anything else is a bug of ours."""


def compare(
    workload: Workload,
    peers: Sequence[Peer],
    folder: Path,
    plan: Plan,
    candidates: Sequence[int] = CANDIDATES,
) -> Results:
    """Measure our service, the baselines and the peers, one after the other."""
    own = own_services(workload)
    contestants = [*own, *(peer_contestant(peer, workload, folder) for peer in peers)]
    histories = Histories(workload, BEFORE_USERS)
    with redis_on(workload, plan.loader_core) as notes, on_core(plan.loader_core):
        exam, before_exam = _answers(own[0], workload, histories, plan, candidates)
        rows = [
            *_guarded(FLOOR, lambda: _floor(workload, exam, plan)),
            *_guarded(BEFORE, lambda: _before(histories, before_exam, plan)),
        ]
        measured: dict[str, list[Row]] = {}
        for contestant in contestants:
            measured[contestant.name] = _guarded(
                contestant.name,
                lambda: at_own_rate(contestant, exam, plan),  # noqa: B023
            )
        common = common_rates([row for found in measured.values() for row in found])
        for contestant in contestants if plan.open_loop_s is not None else ():
            known = [row for row in measured[contestant.name] if row.error is None]
            measured[contestant.name] += _guarded(
                contestant.name,
                lambda: at_common_rates(contestant, exam, plan, known, common),  # noqa: B023
            )
    rows += [row for found in measured.values() for row in found]
    titles = baselines.TITLES | {one.name: one.title for one in contestants}
    return Results(rows, titles, common, about(workload, peers, plan), notes)


def common_rates(rows: Sequence[Row]) -> dict[int, float]:
    """Half of what the slowest can do, by number of candidates: a rate that all can take."""
    rates: dict[int, float] = {}
    for row in rows:
        if row.candidates is not None and row.rps is not None:
            rates[row.candidates] = min(rates.get(row.candidates, row.rps / 2), row.rps / 2)
    return rates


def _answers(
    service: Contestant, workload: Workload, histories: Histories, plan: Plan, candidates: Sequence[int]
) -> tuple[Exam, Exam]:
    """Our service's scores for everyone's questions and for those about users with made-up histories."""
    questions = {count: workload.questions(count) for count in candidates}
    workload.put_for_a_while(histories.states(), baselines.STATE_LIMIT_S)
    about_histories = {
        count: [replace(question, user_id=user) for user, question in zip(BEFORE_USERS, some, strict=False)]
        for count, some in questions.items()
    }
    with service.start(plan.server_core) as running:
        exams = [
            Exam(asked, {count: ask(running.url, service.protocol, some) for count, some in asked.items()})
            for asked in (questions, about_histories)
        ]
        running.check()
    return exams[0], exams[1]


def _floor(workload: Workload, exam: Exam, plan: Plan) -> list[Row]:
    with on_core(plan.server_core):
        return baselines.floor_rows(workload.given(0, Path()), exam, plan.requests)


def _before(histories: Histories, exam: Exam, plan: Plan) -> list[Row]:
    with on_core(plan.server_core):
        return baselines.before_rows(histories, exam)


def _guarded(name: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """The rows, or one that says why there are none."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        return measure()
    except FAULTS as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        kind = WRONG if isinstance(error, WrongAnswer) else "could not be measured: "
        return [Row(name, None, error=f"{kind}{error}")]
