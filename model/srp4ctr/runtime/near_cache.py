"""What a process keeps of what it read from Redis: bounded, for a limited time, and dropped when Redis says it changed."""

import time
from collections import OrderedDict
from dataclasses import dataclass

Value = bytes | None


@dataclass(slots=True)
class Kept:
    """A value, None where Redis had none, until when it is kept, and the connection that it was read over.

    `decoded` is for whoever decodes the value, so that it need not be done again.
    """

    value: Value
    until: float
    connection: int
    decoded: object = None


class NearCache:
    """The values that were asked for last, by key.

    A value is true as long as the connection lives that it was read over, because Redis tells of changes on that one
    alone; after that it is only the last that was known.
    """

    def __init__(self, entries: int, keep_s: float) -> None:
        """Keeps at most so many values, each for at most `keep_s` seconds."""
        self._kept: OrderedDict[str, Kept] = OrderedDict()
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
        kept = self._kept.get(key)
        return None if kept is None or time.monotonic() > kept.until else kept

    def put(self, key: str, read: Kept) -> None:
        """Keep what was just read over the present connection."""
        if not self._entries:
            return
        self._kept[key] = read
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)

    def read(self, value: Value) -> Kept:
        """What was just read, as it would be kept."""
        return Kept(value, time.monotonic() + self._keep_s, self._connection)

    def drop(self, key: str | None) -> None:
        """Forget the key, or everything."""
        if key is None:
            self._kept.clear()
        else:
            self._kept.pop(key, None)

    def doubt(self) -> None:
        """The connection has ended: nothing that is kept is known to be true any more."""
        self._connection += 1
