"""A share of the answers, and what was shown of them, in Redis: until the monitor joins both with what users did.

Both lie in streams of the user's partition, so that a user who is forgotten is forgotten there, too. Entries are removed when
they are joined, by age, and where there are too many.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from srp4ctr.contract.keys import PARTITIONS, Keys, partition
from srp4ctr.runtime.redis_client import store_errors
from srp4ctr.runtime.state_store import within

MAX_ENTRIES = 64
"""Of a stream. All streams together may take half a gigabyte for answers of 500 candidates (docs/operations.md)."""
KEPT_S = 86_400
"""A stream to which nothing has been added for so long goes."""
_MILLISECONDS = 1000


class MonitoredAnswer(NamedTuple):
    """What a user's candidates were given: probabilities [C] of `item_ids`."""

    user_id: str
    request_id: str
    version: str
    item_ids: Sequence[str]
    scores: NDArray[np.float32]


class ShownItems(NamedTuple):
    """What a user was shown of an answer, and when, Unix milliseconds."""

    user_id: str
    request_id: str
    shown_ms: int
    item_ids: Sequence[str]


class AsyncFeedbackStore:
    """What the service does: it adds."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def add(self, entries: Iterable[MonitoredAnswer | ShownItems], limit_s: float) -> None:
        """Add all of them in one pipeline; raises StoreUnavailable where Redis did not take them all."""
        pipeline: Any = self._client.pipeline(transaction=False)
        async with pipeline:
            for entry in entries:
                key, fields = self._entry(entry)
                pipeline.xadd(key, fields, maxlen=MAX_ENTRIES, approximate=False)
                pipeline.expire(key, KEPT_S)
            with store_errors():
                await within(limit_s, pipeline.execute())

    def _entry(self, entry: MonitoredAnswer | ShownItems) -> tuple[str, dict[str, str | bytes]]:
        number = partition(entry.user_id)
        # The user comes first: whoever forgets a user looks no further.
        fields: dict[str, str | bytes] = {"user": entry.user_id, "request": entry.request_id}
        fields["items"] = json.dumps(list(entry.item_ids))
        if isinstance(entry, ShownItems):
            fields["at"] = str(entry.shown_ms)
            return self._keys.shown(number), fields
        fields["version"] = entry.version
        fields["scores"] = entry.scores.astype("<f4").tobytes()
        return self._keys.answered(number), fields


class FeedbackStore:
    """What the monitor does: it takes away what is old enough to be judged."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._shown = [keys.shown(number) for number in range(PARTITIONS)]
        self._answered = [keys.answered(number) for number in range(PARTITIONS)]

    def take(self, age_s: float) -> list[tuple[ShownItems, MonitoredAnswer | None]]:
        """All that was reported as shown so long ago, by Redis's clock, each with its answer where that is still there.

        What is taken is removed, and nobody else is given it. Raises StoreUnavailable.
        """
        with store_errors():
            seconds, microseconds = self._client.time()
            until = f"{seconds * _MILLISECONDS + microseconds // 1000 - round(age_s * _MILLISECONDS)}"
            due = self._read(range(PARTITIONS), self._shown, until)
            answers = self._read({number for number, _, _ in due}, self._answered, "+")
            by_request = {
                (fields[b"user"], fields[b"request"]): (number, entry_id, fields)
                for number, entry_id, fields in answers
            }
            mine = self._remove(self._shown, [(number, entry_id) for number, entry_id, _ in due])
            found, used = [], []
            for (_, _, fields), taken in zip(due, mine, strict=True):
                if not taken:
                    continue
                # Reported twice, it counts once.
                answer = by_request.pop((fields[b"user"], fields[b"request"]), None)
                if answer is not None:
                    used.append(answer[:2])
                found.append((_shown_items(fields), None if answer is None else _answer(answer[2])))
            self._remove(self._answered, used)
        return found

    def _read(
        self, numbers: Iterable[int], streams: Sequence[str], until: str
    ) -> list[tuple[int, bytes, dict[bytes, bytes]]]:
        """Entries up to that id, with their partitions' numbers and their ids."""
        wanted = sorted(numbers)
        pipeline = self._client.pipeline(transaction=False)
        for number in wanted:
            pipeline.xrange(streams[number], "-", until)
        return [
            (number, entry_id, fields)
            for number, entries in zip(wanted, pipeline.execute(), strict=True)
            for entry_id, fields in entries
        ]

    def _remove(self, streams: Sequence[str], entries: Sequence[tuple[int, bytes]]) -> list[bool]:
        """Remove the entries; whether each of them was still there."""
        pipeline = self._client.pipeline(transaction=False)
        for number, entry_id in entries:
            pipeline.xdel(streams[number], entry_id)
        return [bool(removed) for removed in pipeline.execute()]


def _shown_items(fields: dict[bytes, bytes]) -> ShownItems:
    user_id, request_id = fields[b"user"].decode(), fields[b"request"].decode()
    return ShownItems(user_id, request_id, int(fields[b"at"]), json.loads(fields[b"items"]))


def _answer(fields: dict[bytes, bytes]) -> MonitoredAnswer:
    user_id, request_id = fields[b"user"].decode(), fields[b"request"].decode()
    scores = np.frombuffer(fields[b"scores"], "<f4")
    return MonitoredAnswer(
        user_id, request_id, fields[b"version"].decode(), json.loads(fields[b"items"]), scores
    )
