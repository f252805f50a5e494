"""A user's state for one request: read from Redis within a limit, or the cold state and the reason for it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from srp4ctr.contract.errors import StateCorrupt, StateForeign, StoreUnavailable
from srp4ctr.contract.http_types import Degradation, StateStatus
from srp4ctr.contract.state import UserState, decode_state
from srp4ctr.runtime.state_store import AsyncStateStore
from srp4ctr_service.model import ServedModel
from srp4ctr_service.settings import Settings

log = structlog.get_logger()

MAX_BATCH = 100
TIMEOUTS_UNTIL_LOST = 3


@dataclass(frozen=True)
class StateView:
    """The state to score with, and what an answer says about it."""

    state: UserState
    status: StateStatus
    age_ms: int | None = None
    degraded: Degradation | None = None


class StateReader:
    """Reads users' states, and falls back to the cold state."""

    def __init__(self, settings: Settings, store: AsyncStateStore) -> None:
        self._reads = SharedReads(settings, store)
        self._stale_after_ms = settings.stale_after_s * 1000

    async def read(self, model: ServedModel, user_id: str, left_s: float) -> StateView:
        """The user's state under that model, within the `left_s` seconds that the request has left."""
        reason: Degradation
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                data = await self._reads.get(model.version, user_id)
            return self._view(model, data)
        except TimeoutError:
            reason = "deadline"
        except StoreUnavailable:
            reason = "redis_unavailable"
        except StateCorrupt:
            reason = "state_corrupt"
        except StateForeign:
            reason = "state_foreign"
        return StateView(model.bundle.cold_state, "missing", degraded=reason)

    def _view(self, model: ServedModel, data: bytes | None) -> StateView:
        if data is None:
            return StateView(model.bundle.cold_state, "cold")
        manifest = model.bundle.manifest
        state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
        age_ms = max(0, time.time_ns() // 1_000_000 - state.created_at_ms)
        if state.events == 0:
            return StateView(state, "cold", age_ms)
        return StateView(state, "stale" if age_ms > self._stale_after_ms else "fresh", age_ms)


@dataclass(frozen=True)
class _Read:
    version: str
    user_id: str
    data: asyncio.Future[bytes | None]

    def end(self, outcome: bytes | Exception | None) -> None:
        # Whoever left at a deadline of their own has cancelled it.
        if self.data.done():
            return
        if isinstance(outcome, Exception):
            self.data.set_exception(outcome)
        else:
            self.data.set_result(outcome)


class SharedReads:
    """All requests' reads: one batch is under way at a time, and those that come meanwhile make up the next.

    So a burst costs a few round trips, and never more than one connection. Redis is lost after an error, or after a
    few batches in a row without an answer; then one read now and then tries it, and the others fail at once.
    """

    def __init__(self, settings: Settings, store: AsyncStateStore) -> None:
        self._store = store
        self._limit_s = settings.redis_score_timeout_ms / 1000
        self._probe_every_s = settings.redis_probe_every_ms / 1000
        self._waiting: list[_Read] = []
        self._task: asyncio.Task[None] | None = None
        self._timeouts = 0
        self._lost = False
        self._probe_at = 0.0

    async def get(self, version: str, user_id: str) -> bytes | None:
        """The user's state bytes, None where there are none; raises StoreUnavailable and StateCorrupt."""
        if self._lost and (self._task is not None or time.monotonic() < self._probe_at):
            raise StoreUnavailable("Redis is lost, and one request now and then tries it")
        read = _Read(version, user_id, asyncio.get_running_loop().create_future())
        self._waiting.append(read)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="read-user-states")
        return await read.data

    async def _work(self) -> None:
        try:
            while waiting := [read for read in self._waiting if not read.data.done()]:
                batch, self._waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
                outcomes = await self._run(batch)
                for read, outcome in zip(batch, outcomes, strict=True):
                    read.end(outcome)
        finally:
            self._task = None

    async def _run(self, batch: list[_Read]) -> Sequence[bytes | Exception | None]:
        try:
            found = await self._store.get_many(
                [(read.version, read.user_id) for read in batch], self._limit_s
            )
        except StoreUnavailable as error:
            self._failed(error)
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait must hear of it
            return [error] * len(batch)
        self._timeouts = 0
        if self._lost:
            self._lost = False
            log.info("redis_back")
        return found

    def _failed(self, error: StoreUnavailable) -> None:
        self._timeouts += 1
        # One late answer is no outage; a refused connection is.
        if isinstance(error.__cause__, TimeoutError) and self._timeouts < TIMEOUTS_UNTIL_LOST:
            return
        self._probe_at = time.monotonic() + self._probe_every_s
        if not self._lost:
            self._lost = True
            log.warning("redis_lost", reason=str(error))
        left, self._waiting = self._waiting, []
        for read in left:
            read.end(error)
