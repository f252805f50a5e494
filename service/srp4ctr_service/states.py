"""A user's state for one request: read from Redis within a limit, or the cold state and the reason for it."""

import time
from dataclasses import dataclass

import structlog

from srp4ctr.contract.errors import StateCorrupt, StateForeign, StoreUnavailable
from srp4ctr.contract.http_types import Degradation, StateStatus
from srp4ctr.contract.state import UserState, decode_state
from srp4ctr.runtime.state_store import AsyncStateStore
from srp4ctr_service.model import ServedModel
from srp4ctr_service.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class StateView:
    """The state to score with, and what an answer says about it."""

    state: UserState
    status: StateStatus
    age_ms: int | None = None
    degraded: Degradation | None = None


class StateReader:
    """Reads states; while Redis is lost, most requests are told so at once instead of waiting for it."""

    def __init__(self, settings: Settings, store: AsyncStateStore) -> None:
        self._store = store
        self._limit_s = settings.redis_score_timeout_ms / 1000
        self._probe_every_s = settings.redis_probe_every_ms / 1000
        self._stale_after_ms = settings.stale_after_s * 1000
        self._lost = False
        self._probe_at = 0.0

    async def read(self, model: ServedModel, user_id: str, left_s: float) -> StateView:
        """The user's state under that model, within `left_s` seconds and the service's own limit."""
        reason: Degradation
        try:
            data = await self._get(model.version, user_id, min(left_s, self._limit_s))
            return self._view(model, data)
        except _OutOfTime:
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

    async def _get(self, version: str, user_id: str, limit_s: float) -> bytes | None:
        if limit_s <= 0:
            raise _OutOfTime
        if self._lost:
            now = time.monotonic()
            if now < self._probe_at:
                raise StoreUnavailable("Redis is lost, and another request is trying it")
            self._probe_at = now + self._probe_every_s
        try:
            data = await self._store.get(version, user_id, limit_s)
        except StoreUnavailable as error:
            # A request that had less time than Redis is given says nothing about Redis.
            if limit_s < self._limit_s and isinstance(error.__cause__, TimeoutError):
                raise _OutOfTime from error
            self._probe_at = time.monotonic() + self._probe_every_s
            if not self._lost:
                self._lost = True
                log.warning("redis_lost", reason=str(error))
            raise
        if self._lost:
            self._lost = False
            log.info("redis_back")
        return data


class _OutOfTime(Exception):  # noqa: N818 -- never leaves this module
    """The request's own deadline passed while Redis was read."""
