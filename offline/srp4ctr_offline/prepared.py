"""What `prepare` leaves for the jobs after it: codes, histories and rows, memory-mapped."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.state import HEADER_BYTES, START_POSITIONS, StateLayout
from srp4ctr.contract.transforms import Transforms
from srp4ctr.contract.vocabulary import PADDING, Codes, Texts
from srp4ctr.runtime.items import Catalogue

SPLITS = TRAIN, VALID, TEST = ("train", "valid", "test")

Ints = NDArray[np.int64]


class Histories(NamedTuple):
    """B histories of L events, padded on the left: codes [B, L, W], and labels [B, L], -1 where there is none."""

    items: Codes
    behaviours: Codes
    labels: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Events:
    """All events, sorted by user and then by order; user u's are `start[u]` to `start[u + 1]`."""

    start: Ints
    item: NDArray[np.int32]
    behaviours: Codes
    label: NDArray[np.int8]
    time_ms: Ints


@dataclass(frozen=True, eq=False)
class Rows:
    """The labelled rows, in the order of their table.

    `user` and `item` are places in the users' and items' tables. A row may see the first `cut` events of its user.
    """

    row_id: Ints
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    cut: Ints
    place: Ints
    label: NDArray[np.int8]
    split: NDArray[np.int8]
    contexts: Codes

    def of(self, split: str) -> Ints:
        """Places of the rows of `train`, `valid` or `test`."""
        return np.flatnonzero(self.split == SPLITS.index(split))


@dataclass(frozen=True, eq=False)
class Users:
    """All users by sorted id, with their feature codes [U, W].

    `train_events` [U] counts the leading events that belong to the training period.
    """

    ids: Texts
    codes: Codes
    train_events: Ints


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set."""

    transforms: Transforms
    items: Catalogue
    events: Events
    rows: Rows
    users: Users
    report: dict[str, Any]

    @property
    def max_events(self) -> int:
        """Latest events that a history keeps."""
        return self.transforms.schema.max_events

    def event_counts(self) -> Ints:
        """Number of events [U] of each user."""
        return np.diff(self.events.start)

    def event_users(self) -> Ints:
        """The user [E] of each event."""
        return np.repeat(np.arange(len(self.events.start) - 1), self.event_counts())

    def in_training(self) -> NDArray[np.bool_]:
        """Which events [E] belong to the training period."""
        user = self.event_users()
        within = np.arange(len(user)) - self.events.start[user]
        belongs: NDArray[np.bool_] = within < self.users.train_events[user]
        return belongs

    def lengths(self, ends: Ints) -> Ints:
        """Events that histories ending at `ends` keep."""
        return np.minimum(ends, self.max_events)

    def mean_state_bytes(self, layout: StateLayout) -> float:
        """Bytes of a user's state of that layout, the mean over all users."""
        positions, users = np.unique(self.lengths(self.event_counts()) + START_POSITIONS, return_counts=True)
        sizes = [HEADER_BYTES + layout.payload_bytes(int(length)) for length in positions]
        return float(np.average(sizes, weights=users)) if len(users) else 0.0

    def histories(self, users: NDArray[np.integer[Any]], ends: Ints) -> Histories:
        """The latest events among each user's first `ends`; L is that of the longest, and at least 1."""
        length = int(max(1, self.lengths(ends).max(initial=1)))
        first = self.events.start[users][:, None]
        index = first + ends[:, None] - length + np.arange(length)
        padding = index < first
        index = np.where(padding, 0, index)
        if not len(self.events.item):
            shape = (len(users), length)
            widths = (self.items.codes.shape[1], self.events.behaviours.shape[1])
            items, behaviours = (np.full((*shape, width), PADDING, np.int32) for width in widths)
            return Histories(items, behaviours, np.full(shape, -1, np.int8))
        items = np.where(padding[..., None], PADDING, self.items.codes[self.events.item[index]])
        behaviours = np.where(padding[..., None], PADDING, self.events.behaviours[index])
        return Histories(items, behaviours, np.where(padding, np.int8(-1), self.events.label[index]))

    def shuffled(self, generator: np.random.Generator) -> Self:
        """A copy with each user's training events permuted; every row moves with its event.

        Raises DataError where rows are not events.
        """
        start = self.events.start
        if not np.array_equal(start[self.rows.user] + self.rows.cut, self.rows.place):
            raise DataError(
                "shuffle_events: the prepared rows are not events; run srp4ctr prepare again with tables.events and tables.rows of one file"
            )
        user = self.event_users()
        # Later events stay behind, and in their order: the sort is stable.
        part = np.where(self.in_training(), generator.random(len(user)) / 2, 0.5)
        order = np.argsort(user + part, kind="stable")
        moved = {
            field.name: getattr(self.events, field.name)[order]
            for field in dataclasses.fields(Events)
            if field.name != "start"
        }
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        place = place[self.rows.place]
        return dataclasses.replace(
            self,
            events=Events(start=start, **moved),
            rows=dataclasses.replace(self.rows, place=place, cut=place - start[self.rows.user]),
        )

    def save(self, folder: Path) -> None:
        """Write everything into `folder`, in place of what was there: first beside it, so that nothing mixes."""
        draft = folder.with_name(f".{folder.name}-draft")
        shutil.rmtree(draft, ignore_errors=True)
        self.transforms.save(draft)
        self.items.save(draft / "items")
        for name in ("events", "rows", "users"):
            part = getattr(self, name)
            (draft / name).mkdir()
            for field in dataclasses.fields(part):
                np.save(draft / name / f"{field.name}.npy", getattr(part, field.name))
        (draft / "report.json").write_text(json.dumps(self.report, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-map what `save` wrote; DataError where it was not written."""
        if not (folder / "report.json").exists():
            raise DataError(f"{folder} holds no prepared data; run: srp4ctr prepare CONFIG")
        parts = {
            name: kind(
                **{
                    # As plain arrays, of which a part takes a fifth of the time that it takes of numpy's own kind of map.
                    field.name: np.asarray(np.load(folder / name / f"{field.name}.npy", mmap_mode="r"))
                    for field in dataclasses.fields(kind)
                }
            )
            for name, kind in (("events", Events), ("rows", Rows), ("users", Users))
        }
        report = json.loads((folder / "report.json").read_bytes())
        return cls(Transforms.load(folder), Catalogue.load(folder / "items"), report=report, **parts)  # type: ignore[arg-type]
