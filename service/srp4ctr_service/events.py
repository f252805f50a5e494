"""POST /events: what users did, taken in once Redis has it."""

import time
from collections import defaultdict

from srp4ctr.contract.events import RawEvent, check_time
from srp4ctr.contract.http_types import EventsRequest
from srp4ctr.contract.transforms import BEHAVIOUR, check_value
from srp4ctr.runtime.event_store import AsyncEventStore
from srp4ctr_service.request_scope import RequestInfo
from srp4ctr_service.settings import Settings
from srp4ctr_service.states import StateReader
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.versions import Versions


class Events:
    """The path of POST /events and of DELETE /users; keeps nothing between requests.

    What it acknowledges is in this process's answers to all requests that come after: `states` is told before whoever asked.
    """

    def __init__(
        self,
        settings: Settings,
        versions: Versions,
        store: AsyncEventStore,
        states: StateReader,
        telemetry: Telemetry,
    ) -> None:
        self._versions = versions
        self._store = store
        self._states = states
        self._telemetry = telemetry
        self._max_ahead_s = settings.events_max_ahead_s
        self._limit_s = settings.redis_read_timeout_ms / 1000

    async def record(self, request: EventsRequest, info: RequestInfo) -> bytes:
        """The answer to POST /events, given when Redis has all of them.

        Raises NoActiveModel, StoreUnavailable, and InvalidRequest where an event does not fit the model or is of the future.
        """
        self._check(request)
        by_user: dict[str, list[RawEvent]] = defaultdict(list)
        places: dict[str, list[int]] = defaultdict(list)
        for place, event in enumerate(request.events):
            raw = RawEvent(event.timestamp_ms, event.event_id, event.item_id, event.features)
            by_user[event.user_id].append(raw)
            places[event.user_id].append(place)
        outcomes = await self._store.record(by_user, self._limit_s)
        self._states.outdate(by_user)
        found = {
            place: outcome
            for own_places, own in zip(places.values(), outcomes, strict=True)
            for place, outcome in zip(own_places, own, strict=True)
        }
        self._telemetry.count_events(found.values())
        return info.format.write(
            {
                "request_id": info.request_id,
                "stored": sum(outcome == "stored" for outcome in found.values()),
                "duplicates": sorted(place for place, outcome in found.items() if outcome == "duplicate"),
                "too_old": sorted(place for place, outcome in found.items() if outcome == "too_old"),
            }
        )

    async def forget(self, user_id: str) -> int:
        """Remove all that Redis has of the user; gives how many keys and entries that were."""
        try:
            return await self._store.forget(user_id, self._limit_s)
        finally:
            # Where Redis is lost on the way the user may be gone already.
            self._states.forget(user_id)

    def _check(self, request: EventsRequest) -> None:
        transforms = self._versions.current().bundle.transforms
        own = {feature.name for feature in transforms.features(BEHAVIOUR)}
        # Clients learn of a switch later than services. What is stored is raw, and each version reads what it knows of it.
        elsewhere = self._versions.behaviours_before() - own
        now_ms = time.time_ns() // 1_000_000
        for place, event in enumerate(request.events):
            check_time(event.timestamp_ms, now_ms, self._max_ahead_s, f"events[{place}].timestamp_ms")
            # For what it raises: other versions make other codes of the values.
            features = dict(event.features)
            for name in elsewhere.intersection(features):
                check_value(features.pop(name), f"events[{place}].features.{name}")
            transforms.encode_values(BEHAVIOUR, features, f"events[{place}].features")
