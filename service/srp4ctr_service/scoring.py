"""From a parsed request to the bytes of its answer."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from srp4ctr.contract.http_types import Degradation, ScoreRequest, Tier
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr_service.model import Run, ServedModel, run
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


class Scoring:
    """The path of POST /score; keeps nothing between requests.

    The model runs in one thread beside the event loop: runs queue there, so that the loop goes on answering Redis
    and health checks, and no request misses its limits only because another one computes.
    """

    def __init__(
        self, settings: Settings, versions: Versions, states: StateReader, telemetry: Telemetry
    ) -> None:
        self._settings = settings
        self._versions = versions
        self._states = states
        self._telemetry = telemetry
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def close(self) -> None:
        """Wait for the run in progress, and drop those that queue."""
        self._executor.shutdown(cancel_futures=True)

    async def answer(self, request: ScoreRequest, info: RequestInfo) -> bytes:
        """The answer's JSON; raises NoActiveModel, and InvalidRequest where the context does not fit the model."""
        model = self._versions.current()
        context_codes = model.context_codes(request.context)
        parsed = time.perf_counter()
        deadline = info.started + (request.deadline_ms or self._settings.deadline_ms) / 1000
        view = await self._states.read(model, request.user_id, deadline - parsed)
        read = time.perf_counter()
        seconds = {"parse": parsed - info.started, "state": read - parsed}

        degraded = [] if view.degraded is None else [view.degraded]
        done = await self._run(model, view.state, request.item_ids, context_codes, deadline)
        if done is None:
            tier: Tier = "prior"
            rows = model.rows(request.item_ids)
            scores = model.prior[rows]
            if "deadline" not in degraded:
                degraded.append("deadline")
        else:
            tier, rows, scores = "full", done.rows, done.scores
            seconds |= done.seconds
        scored = time.perf_counter()
        answer = Answer(model.version, scores, np.flatnonzero(rows == 0), view, tier, degraded)
        body = answer.body(info.request_id)
        now = time.perf_counter()
        self._telemetry.observe_stages(seconds | {"answer": now - scored, "total": now - info.started})
        self._record(answer, info)
        return body

    async def _run(
        self, model: ServedModel, state: UserState, item_ids: list[str], context_codes: Codes, deadline: float
    ) -> Run | None:
        """What the model gives; None where that is not there by the deadline."""
        now = time.perf_counter()
        if now >= deadline:
            return None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline - now):
                return await loop.run_in_executor(
                    self._executor, run, model, state, item_ids, context_codes, now
                )
        except TimeoutError:
            return None

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
