"""Who saw what before what: histories' ends, splits, and which events belong to training."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.config import ColumnSplit, GlobalSplit, PerUserSplit
from srp4ctr_offline.prepared import SPLITS, TRAIN, Ints
from srp4ctr_offline.source import EVENTS, ROWS, Source


@dataclass(frozen=True, eq=False)
class Timeline:
    """Events in time, and where each row stands among them.

    `sorting` [E] sorts events by user and order, ties as in the file, and user u's then begin at `start[u]` of
    `start` [U + 1]. A row comes after the first `cut` [R] events of its user, and `seen` [R] counts those that came
    no later than the row. `place` [R] is the row's own place when rows are sorted in the same way.
    """

    sorting: Ints
    start: Ints
    cut: Ints
    seen: Ints
    place: Ints

    @classmethod
    def of(cls, source: Source) -> Self:
        """Order all events and rows."""
        row_user = source.user_of[ROWS]
        sorting, start = events_in_time(source)
        place = np.empty(len(row_user), np.int64)
        place[np.lexsort((source.order[ROWS], row_user))] = np.arange(len(row_user))
        if source.one_file:
            cut = place - start[row_user]
            return cls(sorting, start, cut, cut + 1, place)
        cut, seen = (_count_events(source, sorting, start, side) for side in ("left", "right"))
        return cls(sorting, start, cut, seen, place)

    def training_events(self, row_user: NDArray[np.int32], train: NDArray[np.bool_]) -> Ints:
        """Events [U] up to the user's last training row, and before the user's first row of another split."""
        last = np.zeros(len(self.start) - 1, np.int64)
        np.maximum.at(last, row_user[train], self.seen[train])
        first_other = np.diff(self.start)
        np.minimum.at(first_other, row_user[~train], self.cut[~train])
        return np.minimum(last, first_other)


def events_in_time(source: Source) -> tuple[Ints, Ints]:
    """A timeline's `sorting` and `start`, which need no rows."""
    user = source.user_of[EVENTS]
    # lexsort is stable: ties keep the order of the file.
    sorting = np.lexsort((source.order[EVENTS], user))
    start = np.searchsorted(user[sorting], np.arange(len(source.users) + 1)).astype(np.int64)
    return sorting, start


def split_rows(rule: PerUserSplit | GlobalSplit | ColumnSplit, source: Source) -> NDArray[np.int8]:
    """Each row's split [R], as its place in SPLITS; raises DataError where one of them would be empty."""
    rows = source.frames[ROWS]
    if isinstance(rule, ColumnSplit):
        column = rows[rule.column].cast(pl.String)
        wrong = column.filter(~column.is_in(SPLITS).fill_null(value=False))
        if len(wrong):
            names = ", ".join(SPLITS)
            raise DataError(
                f"rows.{rule.column}: must be one of {names}; {len(wrong)} are not, such as {wrong[0]!r}"
            )
        split = column.replace_strict(list(SPLITS), [0, 1, 2], return_dtype=pl.Int8).to_numpy()
    else:
        split = _split_by_order(rule, source)
    for index, name in enumerate(SPLITS):
        if not (split == index).any():
            raise DataError(f"rows: the split leaves no {name} rows; change [split], or give more rows")
    return split


def is_train(split: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which rows train."""
    train: NDArray[np.bool_] = split == SPLITS.index(TRAIN)
    return train


def _split_by_order(rule: PerUserSplit | GlobalSplit, source: Source) -> NDArray[np.int8]:
    user, order = source.user_of[ROWS], source.order[ROWS]
    group = user if isinstance(rule, PerUserSplit) else np.zeros_like(user)
    sorting = np.lexsort((order, group))
    first = np.searchsorted(group[sorting], np.arange(int(group.max(initial=0)) + 2))
    within, size = np.arange(len(group)) - first[group[sorting]], np.diff(first)[group[sorting]]
    # The margin makes .8 of 15 rows twelve, whatever the last bit of .8 is.
    valid_from, test_from = (np.floor(size * part + 1e-9) for part in (rule.train, rule.train + rule.valid))
    split = np.empty(len(group), np.int8)
    split[sorting] = (within >= valid_from).astype(np.int8) + (within >= test_from)
    return split


def _count_events(source: Source, sorting: Ints, start: Ints, side: Literal["left", "right"]) -> Ints:
    """Events of each row's user whose order is less (`left`) or not greater (`right`) than the row's."""
    event_order, row_order = source.order[EVENTS][sorting], source.order[ROWS]
    orders, rank = np.unique(np.concatenate([event_order, row_order]), return_inverse=True)
    user = np.concatenate([source.user_of[EVENTS][sorting], source.user_of[ROWS]]).astype(np.int64)
    key = user * len(orders) + rank
    counted: Ints = np.searchsorted(key[: len(event_order)], key[len(event_order) :], side)
    return counted - start[source.user_of[ROWS]]
