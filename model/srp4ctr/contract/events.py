"""What a user did, as it is kept in Redis: raw values, of which every model version makes its own codes.

A stored event is a JSON array in UTF-8, `[time_ms, "event id", "item id", {"feature": value, ...}]`. Whoever orders
histories reads no further than the id, which is why its characters are few. Events of a snapshot may have the time 0 and
an empty id; they come before all that was acknowledged since.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from srp4ctr.contract.errors import InvalidRequest

EVENT_ID = r"[A-Za-z0-9._:-]{1,128}"
"""A pattern of what an event id looks like."""

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Retention:
    """How much of a user is kept: events of the raw history, and seconds after the last of them, 0 for ever."""

    events: int
    ttl_s: int = 0


class RawEvent(NamedTuple):
    """One thing that a user did: Unix milliseconds, ids, and behaviour features by name as they were given."""

    time_ms: int
    event_id: str
    item_id: str
    features: Mapping[str, Value]


def pack_event(event: RawEvent) -> bytes:
    """The event as it is stored; features without a value are left out."""
    known = {name: value for name, value in event.features.items() if value is not None}
    content = [event.time_ms, event.event_id, event.item_id, known]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def unpack_history(stored: Sequence[bytes]) -> list[RawEvent]:
    """The events of a stored history, in their order; ValueError where something else is stored there."""
    # One document: a parser's call costs more than an event.
    events = json.loads(b"[" + b",".join(stored) + b"]")
    for place, content in enumerate(events):
        # Types as a parser makes them, looked at one by one: a pattern takes four times as long, for each event of a history.
        if not (type(content) is list and [type(part) for part in content] == [int, str, str, dict]):
            # Not what it is: what users did does not belong into logs.
            raise ValueError(f"what is stored at place {place} is no event")
    return [RawEvent._make(content) for content in events]


EARLIEST_MS = 100_000_000_000
"""In 1973; as seconds it is the year 5138."""


def check_time(time_ms: int, now_ms: int, max_ahead_s: float, field: str) -> None:
    """Raises InvalidRequest, which names `field`, where a time is in seconds, or further ahead of the clock than clocks are apart."""
    if time_ms < EARLIEST_MS:
        raise InvalidRequest(field, f"is {time_ms}, which is before 1973; Unix milliseconds are wanted")
    ahead_s = (time_ms - now_ms) / 1000
    if ahead_s > max_ahead_s:
        raise InvalidRequest(
            field, f"is {ahead_s:,.0f} s ahead of the service's clock; Unix milliseconds are wanted"
        )


def latest(events: Iterable[RawEvent]) -> int | None:
    """The time of the newest event whose time is known, Unix milliseconds."""
    return max((event.time_ms for event in events if event.time_ms > 0), default=None)
