"""What clients tell of users: new events, late ones, several at a time, and some that they have told before."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from srp4ctr.contract.events import RawEvent, Value
from srp4ctr.runtime.event_store import Outcome
from srp4ctr_loadtest.chaos.acts import Acts

EVENT_TYPES = ("click", "cart", "buy")
SEVERAL = 0.2
"""Of the times that a user tells something, those with several new events."""
MOST_EVENTS = 3
LATE = 0.2
"""Of the new events, those that others came before which happened later."""
LATEST = 6
"""Half of the late events are among so many; the others are anywhere, also before all that is known."""
EARLIER_MS = 86_400_000
APART_MS = 1000
"""A snapshot's event that is nearer is taken for the same one, where its item is."""
AGAIN = 0.1
"""How often an event is told that was told before, and how often one twice in one request."""
RECENT = 200
"""Events that may be told again: some that are in a full history, and some that no longer are."""
TRIES = 5


class Tellings:
    """Makes up what users do."""

    def __init__(self, items: Sequence[str], random: np.random.Generator) -> None:
        self.late = self.again = 0
        """Events."""
        self._items = items
        self._random = random
        self._numbers = itertools.count(1)

    def of(self, acts: Acts) -> list[RawEvent]:
        """What one user tells in one request, in that order."""
        several = self._random.uniform() < SEVERAL
        newest = max((event.time_ms for event in acts.last.history), default=0)
        events = []
        for _ in range(int(self._random.integers(2, MOST_EVENTS + 1)) if several else 1):
            late_ms = self._late_ms(acts) if self._random.uniform() < LATE else None
            # Later than the one before, whatever the clock does.
            newest = newest if late_ms else max(time.time_ns() // 1_000_000, newest + 1)
            events.append(self._event(late_ms or newest))
            self.late += late_ms is not None
        for again in (acts.told[-RECENT:], events):
            if again and self._random.uniform() < AGAIN:
                events.append(again[int(self._random.integers(len(again)))])
                self.again += 1
        return events

    def in_turns(self, told: Mapping[Acts, Sequence[RawEvent]]) -> Iterator[tuple[Acts, RawEvent]]:
        """The events of several users, each one's in their order."""
        left = {one: iter(events) for one, events in told.items()}
        users = [one for one, events in told.items() for _ in events]
        for place in self._random.permutation(len(users)).tolist():
            yield users[place], next(left[users[place]])

    def _late_ms(self, acts: Acts) -> int | None:
        held = [event.time_ms for event in acts.last.history]
        if len(held) < 2:
            return None
        among_latest = self._random.uniform() < 0.5
        first = held[-min(len(held), LATEST)] if among_latest else held[0] - EARLIER_MS
        for _ in range(TRIES):
            found = int(self._random.integers(first, held[-1] + 1))
            # What has the same time as another, or is taken for one of the snapshot, has no one place.
            if found not in acts.times and not acts.near_snapshot(found, APART_MS):
                return found
        return None

    def _event(self, time_ms: int) -> RawEvent:
        features: dict[str, Value] = {
            "event_type": str(self._random.choice(EVENT_TYPES)),
            "dwell_seconds": round(float(self._random.exponential(30)), 1),
        }
        return RawEvent(time_ms, f"e-{next(self._numbers)}", str(self._random.choice(self._items)), features)


def body(user_id: str, event: RawEvent) -> dict[str, Any]:
    """An event as POST /events takes it."""
    return {
        "user_id": user_id,
        "item_id": event.item_id,
        "event_id": event.event_id,
        "timestamp_ms": event.time_ms,
        "features": dict(event.features),
    }


def wrong_outcomes(
    answer: Mapping[str, Any], sent: Sequence[tuple[Acts, RawEvent, Outcome]], *, again: bool
) -> Iterator[str]:
    """What is wrong of what POST /events says of these events, where that must have become of them.

    `again`: they had been sent before without an answer, and may have been stored then.
    """
    said: list[str] = ["stored"] * len(sent)
    for outcome, name in (("duplicate", "duplicates"), ("too_old", "too_old")):
        for place in answer[name]:
            said[place] = outcome
    if answer["stored"] != said.count("stored"):
        yield f"{answer['stored']} stored, and not {said.count('stored')}"
    for (acts, event, expected), one in zip(sent, said, strict=True):
        possible = {expected}
        if again and expected != "too_old":
            # Unless others of the same request have pushed it out meanwhile.
            possible.add("duplicate" if event in acts.last.history else "too_old")
        if one not in possible:
            yield f"{one}, and not {expected}"
