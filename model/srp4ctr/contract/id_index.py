"""Where an id stands in a table of any size: one hash table for all processes, and no object per id.

Two arrays, both of which may be memory-mapped: the ids, and slots that hold their rows. Every id is in one of the two
slots that its hash names (Pagh and Rodler, Cuckoo Hashing, 2004), so that all ids of a request are looked up in the same
few steps on whole arrays, and each touches at most two places of either, where a binary search in ten million ids would
touch two dozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.vocabulary import Texts

Rows = NDArray[np.int32]
Words = NDArray[np.uint64]

_WORD = 8
# The golden ratio's fraction in 64 bits, an odd number (Knuth, The Art of Computer Programming, vol. 3, 6.4).
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_HALF = np.uint64(32)
_ROUNDS = 500
"""Of moving ids to their other slot; a few dozen do for tables of any size."""


@dataclass(frozen=True, eq=False)
class IdIndex:
    """N distinct ids in rows 1 to N, and slots of which at most four in ten are taken.

    `ids` [N+1] is an `S` array whose items are a multiple of 8 bytes, at least one of them unused, so that what is longer
    than every id still differs from all when it is cut off; row 0 is the empty text. `slots` [a power of two] holds
    rows, 0 where there is none.
    """

    ids: Texts
    slots: Rows

    @classmethod
    def build(cls, ids: Texts) -> Self:
        """The index of distinct ids, none of them empty, in the order given."""
        width = (ids.dtype.itemsize // _WORD + 1) * _WORD
        padded = np.zeros(len(ids) + 1, f"S{width}")
        padded[1:] = ids
        mixed = _mixed(_words(padded))
        size = 8
        while size < 2.5 * len(padded):
            size *= 2
        while (slots := _placed(mixed, size)) is None:
            size *= 2
        return cls(padded, slots)

    def rows(self, ids: Sequence[str]) -> Rows:
        """Rows [C] of ids that contain no NUL; 0 where there is no such id."""
        wanted = _words(self._texts(ids))
        known = _words(self.ids)
        one, other = (self.slots[slot] for slot in _slots(_mixed(wanted), len(self.slots)))
        at_one, at_other = known[one, 0] == wanted[:, 0], known[other, 0] == wanted[:, 0]
        for column in range(1, wanted.shape[1]):
            at_one &= known[one, column] == wanted[:, column]
            at_other &= known[other, column] == wanted[:, column]
        # An id's two slots may be the same one.
        return np.where(at_one, one, other * at_other)

    def _texts(self, ids: Sequence[str]) -> Texts:
        try:
            return np.array(ids, dtype=self.ids.dtype)
        except UnicodeEncodeError:
            # numpy encodes nothing but ASCII.
            return np.array([one.encode() for one in ids], dtype=self.ids.dtype)


class RecentRows:
    """Rows of the ids that were asked for last: a small dictionary is faster than any table of all ids."""

    def __init__(self, index: IdIndex, entries: int = 50_000) -> None:
        """Keeps at most about so many ids, some 10 MB of them by default."""
        self._index = index
        self._entries = entries
        self._rows: dict[str, int] = {}

    def rows(self, ids: Sequence[str]) -> Rows:
        """As the index gives them."""
        found = list(map(self._rows.get, ids))
        if None in found:
            missing = [place for place, row in enumerate(found) if row is None]
            looked_up = self._index.rows([ids[place] for place in missing]).tolist()
            if len(self._rows) + len(missing) > self._entries:
                self._rows.clear()
            for place, row in zip(missing, looked_up, strict=True):
                found[place] = self._rows[ids[place]] = row
        return np.array(found, np.int32)


def _placed(mixed: Words, size: int) -> Rows | None:
    """Slots of so many that have every row but the first in one of its two; None where that was not found."""
    slots = np.zeros(size, np.int32)
    both = np.stack(_slots(mixed, size))
    side = np.zeros(len(mixed), np.int8)
    moved = np.arange(1, len(mixed))
    for _ in range(_ROUNDS):
        # Whoever was there goes to the other slot; of those that come to the same one, the last has it.
        at = both[side[moved], moved]
        gone = slots[at]
        slots[at] = moved
        pushed = np.concatenate([moved, np.unique(gone[gone > 0])])
        moved = pushed[slots[both[side[pushed], pushed]] != pushed]
        if not len(moved):
            return slots
        side[moved] ^= 1
    return None


def _words(texts: Texts) -> Words:
    """The texts' 8-byte words [N, W / 8]."""
    words: Words = texts.view("<u8").reshape(len(texts), texts.dtype.itemsize // _WORD)
    return words


def _mixed(words: Words) -> Words:
    """Hashes [N] of the words: multiplied and folded one after the other."""
    mixed = words[:, 0] * _FACTOR
    for column in range(1, words.shape[1]):
        mixed ^= mixed >> _SHIFT
        mixed ^= words[:, column]
        mixed *= _FACTOR
    mixed ^= mixed >> _HALF
    mixed *= _FACTOR
    return mixed


def _slots(mixed: Words, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The two slots [N] of each hash: by its high half, and by the bits below."""
    mask = np.uint64(size - 1)
    high = (mixed >> _HALF) & mask
    low = (mixed ^ (mixed >> _SHIFT)) & mask
    return high.view(np.int64), low.view(np.int64)
