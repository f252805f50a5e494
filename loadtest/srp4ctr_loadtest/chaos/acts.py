"""What one user did, step by step, and what the user's history must be for it: the documented rules, computed anew."""

from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from srp4ctr.contract.events import RawEvent
from srp4ctr.runtime.event_store import Outcome


class Step(NamedTuple):
    """What is to be in Redis from one request on: the history, oldest first, and how many events have been counted.

    `sent_at` is when it was sent for the first time, by the monotonic clock; `since` the place of the step with which the count
    began: the snapshot's, or that by which the user was forgotten last.
    """

    history: tuple[RawEvent, ...]
    counted: int
    sent_at: float
    since: int


class Acts:
    """One user's steps: the first is the snapshot, and the next is sent when the one before is acknowledged."""

    def __init__(self, user_id: str, keep: int, snapshot: Sequence[RawEvent] = ()) -> None:
        """Of the history the latest `keep` events are kept."""
        self.user_id = user_id
        self.steps = [Step(tuple(snapshot), 0, -inf, 0)]
        self.acknowledged_at = [-inf]
        """When, by the monotonic clock; of all steps but at most the last."""
        self.busy = False
        self.told: list[RawEvent] = []
        """All events that have been sent, once each."""
        self.times = {event.time_ms for event in snapshot}
        """Of all events there were."""
        self._snapshot_times = np.array(sorted(self.times))
        self._keep = keep

    @property
    def acknowledged(self) -> int:
        """The place of the last step that has been acknowledged."""
        return len(self.acknowledged_at) - 1

    @property
    def last(self) -> Step:
        """The last step, acknowledged or not."""
        return self.steps[-1]

    @property
    def idle(self) -> bool:
        """Whether the user has done nothing since the snapshot."""
        return len(self.steps) == 1

    def near_snapshot(self, time_ms: int, apart_ms: int) -> bool:
        """Whether an event of the snapshot is so near to a time."""
        return bool((np.abs(self._snapshot_times - time_ms) <= apart_ms).any())

    def record(self, events: Sequence[RawEvent], now: float) -> list[Outcome]:
        """Events are sent in one request; gives what must become of each."""
        held = list(self.last.history)
        ids = {event.event_id for event in held}
        outcomes: list[Outcome] = []
        for event in events:
            if event.time_ms not in self.times:
                self.times.add(event.time_ms)
                self.told.append(event)
            if event.event_id in ids:
                outcomes.append("duplicate")
            elif len(held) >= self._keep and event.time_ms <= held[0].time_ms:
                outcomes.append("too_old")
            else:
                held.insert(bisect_right(held, event.time_ms, key=lambda one: one.time_ms), event)
                del held[: -self._keep]
                ids.add(event.event_id)
                outcomes.append("stored")
        if stored := outcomes.count("stored"):
            self.steps.append(Step(tuple(held), self.last.counted + stored, now, self.last.since))
        return outcomes

    def forget(self, now: float) -> None:
        """The user is to be forgotten."""
        self.steps.append(Step((), 0, now, len(self.steps)))

    def acknowledge(self, now: float) -> None:
        """What was sent has been acknowledged."""
        self.acknowledged_at += [now] * (len(self.steps) - len(self.acknowledged_at))
