"""What a process keeps of what it read from Redis: bounded, for a limited time, and dropped when Redis says it changed."""

import time
from collections import OrderedDict
from dataclasses import dataclass

Value = bytes | None


@dataclass(slots=True)
class Kept:
    """Two values, None where Redis had none, until when they are kept, and the connection that they were read over.

    `decoded` is for whoever decodes the first one, so that it need not be done again.
    """

    value: Value
    beside: Value
    until: float
    connection: int
    decoded: object = None


class NearCache:
    """The values that were asked for last, by key, each with that of another key which is read beside it.

    Both are true as long as the connection lives that they were read over, because Redis tells of changes on that one
    alone; after that they are only the last that was known.
    """

    def __init__(self, entries: int, keep_s: float) -> None:
        """Keeps at most so many values, each for at most `keep_s` seconds."""
        self._kept: OrderedDict[str, tuple[Kept, str]] = OrderedDict()
        self._key_of: dict[str, str] = {}
        self._entries = entries
        self._keep_s = keep_s
        self._connection = 0

    def get(self, key: str) -> Kept | None:
        """What is known to be true of the key; None where nothing is."""
        kept = self.last_known(key)
        if kept is None or kept.connection != self._connection:
            return None
        self._kept.move_to_end(key)
        return kept

    def last_known(self, key: str) -> Kept | None:
        """What was last read of the key, true or not, within its time."""
        kept, _ = self._kept.get(key, (None, ""))
        return None if kept is None or time.monotonic() > kept.until else kept

    def put(self, key: str, beside: str, read: Kept) -> None:
        """Keep what was just read of both keys over the present connection."""
        if not self._entries:
            return
        self._kept[key] = read, beside
        self._key_of[beside] = key
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._key_of.pop(oldest, None)

    def read(self, value: Value, beside: Value) -> Kept:
        """What was just read, as it would be kept."""
        return Kept(value, beside, time.monotonic() + self._keep_s, self._connection)

    def drop(self, key: str | None) -> None:
        """Forget the key, whichever of the two it is, or everything."""
        if key is None:
            self._kept.clear()
            self._key_of.clear()
            return
        _, beside = self._kept.pop(self._key_of.pop(key, key), (None, ""))
        self._key_of.pop(beside, None)

    def doubt(self) -> None:
        """The connection has ended: nothing that is kept is known to be true any more."""
        self._connection += 1
