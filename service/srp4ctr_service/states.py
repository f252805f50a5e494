"""A user's state for one request: read within a limit, or the cold state and the reason for it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from srp4ctr.contract.errors import StateCorrupt, StateForeign, StoreUnavailable
from srp4ctr.contract.http_types import Degradation, StateStatus
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import UserState
from srp4ctr.runtime.event_store import Counted
from srp4ctr.runtime.near_cache import Kept
from srp4ctr.runtime.state_reads import StateReads
from srp4ctr_service.model import ServedModel
from srp4ctr_service.settings import Settings

READ_SHARE = 0.8
"""Of a request's time that is left, for Redis: without a state there is still something to be answered."""


@dataclass(frozen=True)
class StateView:
    """The state to score with, and what an answer says about it."""

    state: UserState
    status: StateStatus
    age_ms: int | None = None
    events_behind: int | None = None
    degraded: Degradation | None = None


class StateReader:
    """Reads users' states; while Redis is away, falls back to what was last known, and to the cold state."""

    def __init__(self, settings: Settings, reads: StateReads, keys: Keys) -> None:
        self._reads = reads
        self._keys = keys
        self._stale_after_ms = settings.stale_after_s * 1000

    async def read(self, model: ServedModel, user_id: str, left_s: float) -> StateView:
        """The user's state under that model, within the `left_s` seconds that the request has left."""
        key, beside = self._keys.state(model.version, user_id), self._keys.sequence(user_id)
        reason: Degradation
        try:
            if left_s <= 0:
                raise TimeoutError
            until = time.monotonic() + READ_SHARE * left_s
            return self._view(model, await self._reads.get(key, beside, until))
        except TimeoutError:
            reason = "deadline"
        except StoreUnavailable:
            reason = "redis_unavailable"
        except StateCorrupt:
            return _missing(model, "state_corrupt")
        except StateForeign:
            return _missing(model, "state_foreign")
        known = self._reads.last_known(key)
        try:
            return _missing(model, reason) if known is None else self._view(model, known, reason)
        except (StateCorrupt, StateForeign):
            return _missing(model, reason)

    def outdate(self, user_ids: Iterable[str]) -> None:
        """This process has just changed what Redis has of these users: what was read of them is true no more."""
        self._reads.outdate([self._keys.sequence(user_id) for user_id in user_ids])

    def forget(self, user_id: str) -> None:
        """This process has just removed what Redis had of the user: nothing is known of it any more."""
        self._reads.forget([self._keys.sequence(user_id)])

    def _view(self, model: ServedModel, kept: Kept, degraded: Degradation | None = None) -> StateView:
        if kept.value is None:
            behind = None if degraded else _behind(kept, 0)
            return StateView(model.bundle.cold_state, "cold", None, behind, degraded)
        state = kept.decoded
        if not isinstance(state, UserState):
            kept.decoded = state = model.bundle.manifest.decode_state(kept.value)
        age_ms = max(0, time.time_ns() // 1_000_000 - state.created_at_ms)
        # Without Redis nobody knows what has come since.
        behind = None if degraded else _behind(kept, state.sequence)
        if state.events == 0:
            return StateView(state, "cold", age_ms, behind, degraded)
        fresh = behind == 0 and age_ms <= self._stale_after_ms
        return StateView(state, "fresh" if fresh else "stale", age_ms, behind, degraded)


def _missing(model: ServedModel, reason: Degradation) -> StateView:
    return StateView(model.bundle.cold_state, "missing", degraded=reason)


def _behind(kept: Kept, sequence: int) -> int:
    """Acknowledged events that a state of that sequence lacks."""
    if kept.beside is None:
        return 0
    try:
        return Counted.read(kept.beside).behind(sequence)
    except ValueError as error:
        raise StateCorrupt(f"the count of the user's events cannot be read: {error}") from error
