"""Sorted vocabularies, searched without a dictionary, so that processes can share one memory-mapped file."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

PADDING = 0
UNKNOWN = 1
FIRST_VALUE = 2
REMEMBERED = 10_000
"""Texts whose codes are kept: looking one up costs a fiftieth of a search by numpy, whose calls are made for many."""

Codes = NDArray[np.int32]
Texts = NDArray[np.bytes_]


def to_texts(values: list[str] | tuple[str, ...]) -> Texts:
    """UTF-8 bytes of each value as a fixed-width array [N]; the form in which vocabularies are searched.

    Values must not contain NUL, which a fixed-width array cannot hold at a value's end.
    """
    return np.array([value.encode() for value in values], dtype=np.bytes_)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Distinct values, sorted by their UTF-8 bytes: the i-th has the code i + 2; 0 pads and 1 is unknown.

    `values` [N] is an `S` array and may be memory-mapped. The empty text stands for a missing value and is
    never a member.
    """

    values: Texts
    _known: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(cls, texts: Texts, min_count: int = 1) -> Self:
        """All distinct texts that occur at least `min_count` times."""
        values, counts = np.unique(texts, return_counts=True)
        return cls(values[(counts >= min_count) & (values != b"")])

    @property
    def size(self) -> int:
        """Number of codes, padding and unknown included."""
        return len(self.values) + FIRST_VALUE

    def code(self, text: str) -> int:
        """The code of one text, as `encode` has it."""
        if not text:
            # Missing, as most features of a request are that gives few.
            return UNKNOWN
        known = self._known.get(text)
        if known is None:
            known = int(self.encode(to_texts([text]))[0])
            # Members alone, so that what others send does not fill it.
            if known != UNKNOWN and len(self._known) < REMEMBERED:
                self._known[text] = known
        return known

    def encode(self, texts: Texts) -> Codes:
        """Codes [N] of texts [N]; 1 where a text is not a member."""
        if not len(self.values) or not len(texts):
            return np.full(len(texts), UNKNOWN, np.int32)
        # Searching with wider texts would make numpy copy the whole vocabulary to that width; a text that is
        # too wide is no member anyway.
        fits = np.char.str_len(texts) <= self.values.dtype.itemsize
        narrow = texts.astype(self.values.dtype)
        position = np.minimum(np.searchsorted(self.values, narrow), len(self.values) - 1)
        found = fits & (self.values[position] == narrow)
        return np.where(found, position + FIRST_VALUE, UNKNOWN).astype(np.int32)
