"""From a parsed request to its answer."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import DeadlineMissed
from srp4ctr.contract.http_types import (
    BatchRequest,
    Degradation,
    RankRequest,
    ScoreRequest,
    Timed,
    UserRequest,
)
from srp4ctr.contract.id_index import Rows
from srp4ctr.contract.state import UserState
from srp4ctr_service.answers import Answer, written
from srp4ctr_service.compute import Compute
from srp4ctr_service.door import Door
from srp4ctr_service.model import Question, ServedModel
from srp4ctr_service.monitored import Monitored
from srp4ctr_service.recorder import Recorder
from srp4ctr_service.request_scope import RequestInfo
from srp4ctr_service.settings import Settings
from srp4ctr_service.states import StateReader
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.versions import Versions

ROWS_OF_AN_ITEM = 4
"""What an item costs whose attributes the request gives, in rows: its codes are made one by one, and its vector by a graph."""


@dataclass(frozen=True)
class Run:
    """What one run of the model gave, and its times in seconds, by stage."""

    scores: NDArray[np.float32]
    rows: Rows
    seconds: dict[str, float]


@dataclass(frozen=True)
class Turn:
    """One request's share of the service: what every user of it has in common."""

    model: ServedModel
    info: RequestInfo
    parsed: float
    deadline: float
    crowded: bool


class Scoring:
    """The path of POST /score, /rank and /score/batch; keeps nothing between requests.

    Each method gives the answer's bytes and raises NoActiveModel, Overloaded, DeadlineMissed, and InvalidRequest where the
    request does not fit the model.
    """

    def __init__(
        self,
        settings: Settings,
        versions: Versions,
        states: StateReader,
        compute: Compute,
        door: Door,
        telemetry: Telemetry,
        monitored: Monitored,
        recorder: Recorder | None = None,
    ) -> None:
        self._settings = settings
        self._versions = versions
        self._states = states
        self._compute = compute
        self._door = door
        self._telemetry = telemetry
        self._monitored = monitored
        self._recorder = recorder

    async def score(self, request: ScoreRequest, info: RequestInfo) -> bytes:
        """The answer to POST /score."""
        turn, answer = await self._one(request, info)
        return self._end(turn, [answer], answer.how() | {"scores": answer.scores})

    async def rank(self, request: RankRequest, info: RequestInfo) -> bytes:
        """The answer to POST /rank."""
        turn, answer = await self._one(request, info)
        return self._end(turn, [answer], answer.how() | answer.best(request.top_k))

    async def batch(self, request: BatchRequest, info: RequestInfo) -> bytes:
        """The answer to POST /score/batch."""
        model, users = self._versions.current(), request.requests
        rows, wait_s = sum(map(rows_of, users)), self._compute.wait_s
        with self._compute.admit(rows, len(users)):
            questions = []
            for place, one in enumerate(users):
                questions.append(model.question(one, f"requests[{place}]."))
                if one.items:
                    # Their codes are made one by one: others have their turn between two users.
                    await asyncio.sleep(0)
            self._door.learn(info.body_bytes, rows)
            # Of the first alone: those whose turn comes in time are scored in full.
            turn = self._turn(model, request, info, rows_of(users[0]), wait_s)
            answers = await _all(
                self._answer(turn, user, question) for user, question in zip(users, questions, strict=True)
            )
        return self._end(turn, answers, {"answers": [one.how() | {"scores": one.scores} for one in answers]})

    async def _one(self, request: ScoreRequest, info: RequestInfo) -> tuple[Turn, Answer]:
        model = self._versions.current()
        rows, wait_s = rows_of(request), self._compute.wait_s
        with self._compute.admit(rows, 1):
            question = model.question(request)
            self._door.learn(info.body_bytes, rows)
            turn = self._turn(model, request, info, rows, wait_s)
            return turn, await self._answer(turn, request, question)

    def _turn(self, model: ServedModel, request: Timed, info: RequestInfo, rows: int, wait_s: float) -> Turn:
        parsed = time.perf_counter()
        deadline = info.started + (request.deadline_ms or self._settings.deadline_ms) / 1000
        # What waited for the model when it came is done before this request is.
        crowded = wait_s > 0 and parsed < deadline < parsed + wait_s + self._compute.seconds(rows)
        self._observe(info, info.started, {"parse": parsed - info.started})
        return Turn(model, info, parsed, deadline, crowded)

    async def _answer(self, turn: Turn, request: UserRequest, question: Question) -> Answer:
        model, deadline = turn.model, turn.deadline
        view = await self._states.read(model, request.user_id, deadline - turn.parsed)
        read = time.perf_counter()
        self._observe(turn.info, turn.parsed, {"state": read - turn.parsed})
        degraded: list[Degradation] = [] if view.degraded is None else [view.degraded]
        done = None
        if not turn.crowded:
            done = await self._compute.run(
                rows_of(request), deadline, lambda: run(model, view.state, question, read)
            )
        if done is not None:
            self._observe(turn.info, read, done.seconds)
            self._monitored.offer(
                turn.info.request_id, request.user_id, model.version, question.item_ids, done.scores
            )
            if self._recorder is not None:
                self._recorder.offer(
                    turn.info.request_id, model, request, question, done.rows, view, done.scores
                )
            unknown = model.unknown(question, done.rows)
            if time.perf_counter() > deadline and "deadline" not in degraded:
                degraded.append("deadline")
            return Answer(question.item_ids, done.scores, unknown, view, "full", degraded)
        late: Degradation = "overload" if turn.crowded else "deadline"
        if late not in degraded:
            degraded.append(late)
        late_s = time.perf_counter() - deadline
        if late_s > self._settings.deadline_grace_ms / 1000:
            raise DeadlineMissed(f"the deadline passed {1000 * late_s:.1f} ms before there was any answer")
        rows = model.rows(question)
        unknown = model.unknown(question, rows)
        return Answer(question.item_ids, model.prior(rows), unknown, view, "prior", degraded)

    def _observe(self, info: RequestInfo, began: float, seconds: Mapping[str, float]) -> None:
        """Measure stages that followed one another."""
        self._telemetry.observe_stages(seconds)
        info.note_stages(began, seconds)

    def _end(self, turn: Turn, answers: Sequence[Answer], content: dict[str, object]) -> bytes:
        scored = time.perf_counter()
        body = written(turn.info, turn.model, content)
        now = time.perf_counter()
        self._observe(turn.info, scored, {"answer": now - scored})
        self._telemetry.observe_stages({"total": now - turn.info.started})
        notes = turn.info.notes
        for answer in answers:
            unknown = len(answer.unknown_items)
            view = answer.view
            self._telemetry.count_answer(
                len(answer.scores), unknown, view.status, view.age_ms, answer.tier, answer.degraded
            )
        notes["version"] = turn.model.version
        notes["candidates"] = sum(len(answer.scores) for answer in answers)
        notes["unknown_items"] = sum(len(answer.unknown_items) for answer in answers)
        if len(answers) == 1:
            (answer,) = answers
            notes |= {"state": answer.view.status, "tier": answer.tier, "degraded": answer.degraded}
        else:
            notes["users"] = len(answers)
            notes["degraded"] = sorted({reason for answer in answers for reason in answer.degraded})
        return body


def rows_of(request: UserRequest) -> int:
    """What a user's question takes of the model, in rows: its candidates, and the items whose attributes it gives."""
    return len(request.item_ids) + ROWS_OF_AN_ITEM * len(request.items)


async def _all(answers: Iterable[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """All of them; when one fails the others are ended, since nobody waits for them any more."""
    tasks = [asyncio.create_task(one) for one in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def run(model: ServedModel, state: UserState, question: Question, handed_over: float) -> Run:
    """Look up and score; `handed_over` is when the request began to wait for it."""
    begun = time.perf_counter()
    rows = model.rows(question)
    found = time.perf_counter()
    scores = model.score(state, question, rows)
    done = time.perf_counter()
    return Run(scores, rows, {"queue": begun - handed_over, "rows": found - begun, "model": done - found})
