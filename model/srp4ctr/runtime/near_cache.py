"""What a process keeps of what it read from Redis: bounded, for a limited time, and dropped when Redis says it changed."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

Value = bytes | None
ENTRIES, KEEP_S = 5000, 300
"""What a service keeps by default: user states, and each for so many seconds."""
NEVER = -1
"""The connection of what is known to have changed."""


@dataclass(slots=True)
class Kept:
    """Two values, None where Redis had none, until when they are kept, and the connection that they were read over, or NEVER.

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
    alone, and as long as nobody doubts them; after that they are only the last that was known.
    """

    def __init__(self, entries: int, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Keeps at most so many values, each for at most `keep_s` seconds of the clock."""
        self._kept: OrderedDict[str, tuple[Kept, str]] = OrderedDict()
        # Several: what is beside the states of all versions of a user is one key.
        self._keys_of: dict[str, set[str]] = {}
        self._entries = entries
        self._keep_s = keep_s
        self._clock = clock
        self._connection = 0
        self._doubted = False

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
        return None if kept is None or self._clock() > kept.until else kept

    def put(self, key: str, beside: str, read: Kept) -> None:
        """Keep what was just read of both keys over the present connection."""
        if not self._entries:
            return
        self._kept[key] = read, beside
        self._keys_of.setdefault(beside, set()).add(key)
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._drop(next(iter(self._kept)))

    def read(self, value: Value, beside: Value) -> Kept:
        """What was just read, as it would be kept."""
        return Kept(value, beside, self._clock() + self._keep_s, self._connection)

    def drop(self, key: str | None) -> None:
        """Forget the key, whichever of the two it is, or everything."""
        if key is None:
            self._kept.clear()
            self._keys_of.clear()
            return
        for one in self._kept_under(key):
            self._drop(one)

    def doubt(self, key: str) -> None:
        """The key, whichever of the two it is, is known to have changed: what is kept of it is only the last known."""
        for one in self._kept_under(key):
            self._kept[one][0].connection = NEVER
            self._doubted = True

    def doubt_all(self) -> None:
        """The connection has ended: nothing that is kept is known to be true any more."""
        self._connection += 1
        self._doubted = True

    def drop_doubted(self) -> None:
        """Forget what has been doubted and not been read again since."""
        if self._doubted:
            for key in [key for key, (kept, _) in self._kept.items() if kept.connection != self._connection]:
                self._drop(key)
            self._doubted = False

    def _kept_under(self, key: str) -> list[str]:
        """What is kept of the key, whichever of the two it is."""
        return [one for one in self._keys_of.get(key, (key,)) if one in self._kept]

    def _drop(self, key: str) -> None:
        _, beside = self._kept.pop(key, (None, ""))
        keys = self._keys_of.get(beside)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._keys_of[beside]
