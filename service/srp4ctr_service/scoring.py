"""From a parsed request to the bytes of its answer."""

import time
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from srp4ctr.contract.errors import DeadlineMissed
from srp4ctr.contract.http_types import Degradation, ScoreRequest, Tier
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr_service.compute import Compute
from srp4ctr_service.model import ServedModel
from srp4ctr_service.request_scope import RequestInfo
from srp4ctr_service.settings import Settings
from srp4ctr_service.states import StateReader, StateView
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.versions import Versions


@dataclass(frozen=True)
class Answer:
    """Scores [C], the places of candidates that the catalogue lacks, and how the scores came about."""

    version: str
    scores: NDArray[np.float32]
    unknown_items: NDArray[np.intp]
    view: StateView
    tier: Tier
    degraded: list[Degradation]

    def body(self, request_id: str) -> bytes:
        """The ScoreResponse as JSON, without a Python object per candidate."""
        return orjson.dumps(
            {
                "request_id": request_id,
                "model_version": self.version,
                "scores": self.scores,
                "user_state": {
                    "status": self.view.status,
                    "age_ms": self.view.age_ms,
                    "events_behind": None,
                },
                "tier": self.tier,
                "degraded": self.degraded,
                "unknown_items": self.unknown_items,
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )


@dataclass(frozen=True)
class Run:
    """What one run of the model gave, and its times in seconds, by stage."""

    scores: NDArray[np.float32]
    rows: NDArray[np.int32]
    seconds: dict[str, float]


class Scoring:
    """The path of POST /score; keeps nothing between requests."""

    def __init__(
        self,
        settings: Settings,
        versions: Versions,
        states: StateReader,
        compute: Compute,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._versions = versions
        self._states = states
        self._compute = compute
        self._telemetry = telemetry

    async def answer(self, request: ScoreRequest, info: RequestInfo) -> bytes:
        """The answer's JSON; raises NoActiveModel, Overloaded, DeadlineMissed, and InvalidRequest where the context does
        not fit the model.
        """
        model = self._versions.current()
        context_codes = model.context_codes(request.context)
        parsed = time.perf_counter()
        candidates = len(request.item_ids)
        deadline = info.started + (request.deadline_ms or self._settings.deadline_ms) / 1000
        # What waits for the model now is done before this request is.
        wait_s = self._compute.wait_s
        crowded = parsed < deadline < parsed + wait_s
        with self._compute.admit(candidates):
            view = await self._states.read(model, request.user_id, deadline - parsed)
            read = time.perf_counter()
            seconds = {"parse": parsed - info.started, "state": read - parsed}
            degraded: list[Degradation] = [] if view.degraded is None else [view.degraded]
            done = None
            if not crowded:
                done = await self._compute.run(
                    candidates, deadline, lambda: run(model, view.state, request, context_codes, read)
                )
        if done is None:
            late: Degradation = "overload" if crowded else "deadline"
            if late not in degraded:
                degraded.append(late)
            done = self._prior(model, request, deadline)
            tier: Tier = "prior"
        else:
            tier = "full"
            seconds |= done.seconds
        scored = time.perf_counter()
        unknown = np.flatnonzero(done.rows == 0)
        answer = Answer(model.version, done.scores, unknown, view, tier, degraded)
        body = answer.body(info.request_id)
        now = time.perf_counter()
        self._telemetry.observe_stages(seconds | {"answer": now - scored, "total": now - info.started})
        self._record(answer, info)
        return body

    def _prior(self, model: ServedModel, request: ScoreRequest, deadline: float) -> Run:
        late_s = time.perf_counter() - deadline
        if late_s > self._settings.deadline_grace_ms / 1000:
            raise DeadlineMissed(f"the deadline passed {1000 * late_s:.1f} ms before there was any answer")
        rows = model.rows(request.item_ids)
        return Run(model.prior[rows], rows, {})

    def _record(self, answer: Answer, info: RequestInfo) -> None:
        candidates, unknown = len(answer.scores), len(answer.unknown_items)
        telemetry = self._telemetry
        telemetry.candidates.observe(candidates)
        telemetry.unknown_items.inc(unknown)
        telemetry.states[answer.view.status].inc()
        telemetry.tiers[answer.tier].inc()
        for reason in answer.degraded:
            telemetry.degraded[reason].inc()
        info.notes |= {
            "version": answer.version,
            "candidates": candidates,
            "unknown_items": unknown,
            "state": answer.view.status,
            "tier": answer.tier,
            "degraded": answer.degraded,
        }


def run(
    model: ServedModel, state: UserState, request: ScoreRequest, context_codes: Codes, handed_over: float
) -> Run:
    """Look up and score; `handed_over` is when the request began to wait for it."""
    begun = time.perf_counter()
    rows = model.rows(request.item_ids)
    found = time.perf_counter()
    scores = model.score(state, rows, context_codes)
    done = time.perf_counter()
    return Run(scores, rows, {"queue": begun - handed_over, "rows": found - begun, "model": done - found})
