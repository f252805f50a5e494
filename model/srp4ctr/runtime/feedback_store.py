"""A share of the answers, and what was shown of them, in Redis: until the monitor joins both with what users did.

Both lie in streams of the user's partition, so that a user who is forgotten is forgotten there, too. Entries are removed when
they are joined, by age, and where they take too much memory.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from srp4ctr.contract.keys import PARTITIONS, Keys, partition
from srp4ctr.runtime.redis_client import store_errors
from srp4ctr.runtime.state_store import within

KEPT_S = 86_400
"""A stream to which nothing has been added for so long goes."""
_MILLISECONDS = 1000
_ADD = """
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[2])
local pushed, left = 0, redis.call('XLEN', KEYS[1])
while left > 1 and redis.call('MEMORY', 'USAGE', KEYS[1]) > tonumber(ARGV[1]) do
    left = left - 1
    pushed = pushed + redis.call('XTRIM', KEYS[1], 'MAXLEN', left)
end
return pushed
"""
"""Add to a stream, the oldest entries making room; the newest stays whatever its size."""
T = TypeVar("T")


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


class Due(NamedTuple):
    """What is to be judged, and its answer where that is still there; None for `shown` that cannot be read."""

    shown: ShownItems | None
    answer: MonitoredAnswer | None
    partition: int
    shown_id: bytes
    answer_id: bytes | None


class AsyncFeedbackStore:
    """What the service does: it adds."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, max_bytes: int) -> None:
        """All streams together take no more than `max_bytes`."""
        self._client = client
        self._keys = keys
        # Each partition has two.
        self._stream_bytes = max_bytes // (2 * PARTITIONS)

    async def add(self, entries: Iterable[MonitoredAnswer | ShownItems], limit_s: float) -> int:
        """Add all of them in one pipeline; gives how many older ones they pushed out.

        Raises StoreUnavailable where Redis did not take them all.
        """
        pipeline: Any = self._client.pipeline(transaction=False)
        async with pipeline:
            for entry in entries:
                key, fields = self._entry(entry)
                pairs = [part for pair in fields.items() for part in pair]
                pipeline.eval(_ADD, 1, key, self._stream_bytes, KEPT_S, *pairs)
            with store_errors():
                return sum(await within(limit_s, pipeline.execute()))

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
    """What the monitor does: it looks for what is old enough to be judged, and takes it away."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._shown = [keys.shown(number) for number in range(PARTITIONS)]
        self._answered = [keys.answered(number) for number in range(PARTITIONS)]

    def due(self, age_s: float, partitions: Iterable[int]) -> list[Due]:
        """All that was reported as shown so long ago, by Redis's clock, for users of these partitions.

        Raises StoreUnavailable.
        """
        with store_errors():
            seconds, microseconds = self._client.time()
            until = f"{seconds * _MILLISECONDS + microseconds // 1000 - round(age_s * _MILLISECONDS)}"
            shown = self._read(partitions, self._shown, until)
            answers = self._read({number for number, _, _ in shown}, self._answered, "+")
        by_request = {_request(fields): (entry_id, fields) for _, entry_id, fields in answers}
        found = []
        for number, shown_id, fields in shown:
            # Reported twice, it counts once.
            answer_id, answer = by_request.pop(_request(fields), (None, None))
            found.append(
                Due(
                    _readable(_shown_items, fields),
                    None if answer is None else _readable(_answer, answer),
                    number,
                    shown_id,
                    answer_id,
                )
            )
        return found

    def remove(self, due: Sequence[Due]) -> list[Due]:
        """Remove what is to be judged, with the answers; gives those that nobody else had removed. Raises StoreUnavailable."""
        with store_errors():
            removed = self._remove(self._shown, [(one.partition, one.shown_id) for one in due])
            mine = [one for one, taken in zip(due, removed, strict=True) if taken]
            answers = [(one.partition, one.answer_id) for one in mine if one.answer_id is not None]
            self._remove(self._answered, answers)
        return mine

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


def _request(fields: dict[bytes, bytes]) -> tuple[bytes | None, bytes | None]:
    return fields.get(b"user"), fields.get(b"request")


def _readable(read: Callable[[dict[bytes, bytes]], T], fields: dict[bytes, bytes]) -> T | None:
    """What the fields say; None where they are none that we wrote."""
    try:
        return read(fields)
    except (KeyError, ValueError):
        return None


def _shown_items(fields: dict[bytes, bytes]) -> ShownItems:
    user_id, request_id = fields[b"user"].decode(), fields[b"request"].decode()
    return ShownItems(user_id, request_id, int(fields[b"at"]), json.loads(fields[b"items"]))


def _answer(fields: dict[bytes, bytes]) -> MonitoredAnswer:
    user_id, request_id = fields[b"user"].decode(), fields[b"request"].decode()
    scores = np.frombuffer(fields[b"scores"], "<f4")
    return MonitoredAnswer(
        user_id, request_id, fields[b"version"].decode(), json.loads(fields[b"items"]), scores
    )
