"""A share of the answers, and what was shown of them, in Redis: until the monitor joins both with what users did.

Both lie in streams of the user's partition, so that a user who is forgotten is forgotten there, too. Impressions are removed when
they are joined. Answers stay, since more may be shown of them, until newer ones need the room, or for a day after the last.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from srp4ctr.contract.keys import PARTITIONS, Keys, partition
from srp4ctr.runtime.async_state_store import within
from srp4ctr.runtime.feedback_scripts import ADD_ANSWER, ADD_SHOWN, TAKE
from srp4ctr.runtime.redis_client import store_errors

KEPT_S = 86_400
"""A stream to which nothing has been added for so long goes."""
_MILLISECONDS = 1000
EACH = 4
"""Impressions of a partition that are in memory together."""
_TAKEN_BY_ANOTHER, _ANSWER_GONE = -1, -2
T = TypeVar("T")
Entry = tuple[bytes, dict[bytes, bytes]]


class MonitoredAnswer(NamedTuple):
    """What a user's candidates were given: probabilities [C] of `item_ids`, and when, Unix milliseconds."""

    user_id: str
    request_id: str
    answered_ms: int
    version: str
    item_ids: Sequence[str]
    scores: NDArray[np.float32]


class ShownItems(NamedTuple):
    """What a user was shown of an answer, and when, Unix milliseconds."""

    user_id: str
    request_id: str
    shown_ms: int
    item_ids: Sequence[str]


class Due(NamedTuple):
    """An impression that is to be judged, and its answer; each None where it cannot be read, `answer_id` where there is none."""

    partition: int
    shown_id: bytes
    shown: ShownItems | None
    answer_id: bytes | None
    answer: MonitoredAnswer | None


class Taken(NamedTuple):
    """An impression that nobody else has judged, and the places of its answer's candidates that are to be judged now.

    None where the answer went meanwhile.
    """

    due: Due
    places: Sequence[int] | None


class AsyncFeedbackStore:
    """What the service does: it adds."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, max_bytes: int) -> None:
        """All streams together take no more than `max_bytes`."""
        self._client = client
        self._keys = keys
        self._add_shown = client.register_script(ADD_SHOWN)
        self._add_answer = client.register_script(ADD_ANSWER)
        # Each partition has two; what is noted of answers counts with them.
        self._stream_bytes = max_bytes // (2 * PARTITIONS)

    async def add(self, entries: Iterable[MonitoredAnswer | ShownItems], limit_s: float) -> int:
        """Add all of them in one pipeline; gives how many older ones they pushed out.

        Raises StoreError where Redis did not take them all.
        """
        pipeline: Any = self._client.pipeline(transaction=False)
        async with pipeline:
            for entry in entries:
                await self._add(entry, pipeline)
            with store_errors():
                return sum(await within(limit_s, pipeline.execute()))

    async def _add(self, entry: MonitoredAnswer | ShownItems, pipeline: Any) -> None:
        number = partition(entry.user_id)
        limits = [self._stream_bytes, KEPT_S]
        # The user and the request come first: the scripts look no further.
        fields: list[str | bytes | int] = ["user", entry.user_id, "request", entry.request_id]
        fields += ["items", json.dumps(list(entry.item_ids))]
        if isinstance(entry, ShownItems):
            fields += ["at", entry.shown_ms]
            await self._add_shown([self._keys.shown(number)], [*limits, *fields], pipeline)
        else:
            fields += ["at", entry.answered_ms, "version", entry.version]
            fields += ["scores", entry.scores.astype("<f4").tobytes()]
            keys = [self._keys.answered(number), self._keys.answers(number)]
            await self._add_answer(keys, [*limits, _named(entry), *fields], pipeline)


class FeedbackStore:
    """What the monitor does: it looks for what is old enough to be judged, and takes it away."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._take = client.register_script(TAKE)

    def reported_before(self, age_s: float) -> int:
        """The time so long ago, by Redis's clock, Unix milliseconds; raises StoreUnavailable."""
        with store_errors():
            seconds, microseconds = self._client.time()
        return int(seconds * _MILLISECONDS + microseconds // 1000 - round(age_s * _MILLISECONDS))

    def due(self, until_ms: int, partitions: Iterable[int]) -> list[Due]:
        """The oldest impressions of users of these partitions that were reported until then, EACH of a partition, with their
        answers; none where all are taken. Raises StoreError.
        """
        pipeline = self._client.pipeline(transaction=False)
        numbers = list(partitions)
        for number in numbers:
            pipeline.xrange(self._keys.shown(number), "-", str(until_ms), count=EACH)
        with store_errors():
            found = [
                (number, entry_id, _readable(_shown_items, fields))
                for number, entries in zip(numbers, pipeline.execute(), strict=True)
                for entry_id, fields in entries
            ]
            answers = self._answers({(number, _named(shown)) for number, _, shown in found if shown})
        due = []
        for number, shown_id, shown in found:
            answer = None if shown is None else answers.get((number, _named(shown)))
            if answer is None:
                due.append(Due(number, shown_id, shown, None, None))
            else:
                due.append(Due(number, shown_id, shown, answer[0], _readable(_answer, answer[1])))
        return due

    def take(self, judged: Sequence[tuple[Due, Sequence[int]]]) -> list[Taken]:
        """Take impressions away, each with the places of its answer's candidates that are to be judged, if any.

        Gives those that nobody else had taken, and of their places those that had not been judged. A partition's are taken in
        one step, so that each counts at most once. Raises StoreError; what had been taken by then counts nowhere.
        """
        by_partition: dict[int, list[tuple[Due, Sequence[int]]]] = {}
        for due, places in judged:
            by_partition.setdefault(due.partition, []).append((due, places))
        pipeline = self._client.pipeline(transaction=False)
        for number, some in by_partition.items():
            arguments: list[str | bytes | int] = []
            for due, places in some:
                name = _named(due.shown) if due.shown else ""
                arguments += [due.shown_id, name, due.answer_id or "", len(places), *places]
            self._take([self._keys.shown(number), self._keys.answers(number)], arguments, pipeline)
        with store_errors():
            outcomes = [outcome for outcomes in pipeline.execute() for outcome in outcomes]
        ordered = [due for some in by_partition.values() for due, _ in some]
        return [
            Taken(due, None if outcome == _ANSWER_GONE else [int(place) for place in outcome])
            for due, outcome in zip(ordered, outcomes, strict=True)
            if outcome != _TAKEN_BY_ANOTHER
        ]

    def _answers(self, wanted: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Entry]:
        """Entries of the answers that are there, by partition and name."""
        names = sorted(wanted)
        pipeline = self._client.pipeline(transaction=False)
        for number, name in names:
            pipeline.hget(self._keys.answers(number), name)
        noted = [
            (one, value.split(b" ")[0])
            for one, value in zip(names, pipeline.execute(), strict=True)
            if value is not None
        ]
        for (number, _), entry_id in noted:
            pipeline.xrange(self._keys.answered(number), entry_id, entry_id)
        return {
            one: entries[0] for (one, _), entries in zip(noted, pipeline.execute(), strict=True) if entries
        }


def _named(of: MonitoredAnswer | ShownItems) -> str:
    """An answer's field in the hash; no id contains NUL."""
    return f"{of.user_id}\0{of.request_id}"


def _readable(read: Callable[[dict[bytes, bytes]], T], fields: dict[bytes, bytes]) -> T | None:
    """What the fields say; None where they are none that we wrote."""
    try:
        return read(fields)
    except (KeyError, ValueError):
        return None


def _shown_items(fields: dict[bytes, bytes]) -> ShownItems:
    user_id, request_id = fields[b"user"].decode(), fields[b"request"].decode()
    return ShownItems(user_id, request_id, int(fields[b"at"]), _items(fields))


def _answer(fields: dict[bytes, bytes]) -> MonitoredAnswer:
    user_id, request_id = fields[b"user"].decode(), fields[b"request"].decode()
    items, scores = _items(fields), np.frombuffer(fields[b"scores"], "<f4")
    if len(items) != len(scores):
        raise ValueError(f"{len(scores)} scores of {len(items)} items")
    version = fields[b"version"].decode()
    return MonitoredAnswer(user_id, request_id, int(fields[b"at"]), version, items, scores)


def _items(fields: dict[bytes, bytes]) -> list[str]:
    items = json.loads(fields[b"items"])
    if not isinstance(items, list) or not all(isinstance(one, str) for one in items):
        raise ValueError("items are no list of ids")
    return items
