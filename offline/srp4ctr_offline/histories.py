"""Raw histories of a snapshot's users, as they are stored in Redis for whoever re-encodes them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.schema import Feature
from srp4ctr.contract.transforms import BEHAVIOUR
from srp4ctr_offline.columns import numbers_of, texts_of
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.data.tables import read_table
from srp4ctr_offline.prepared import Ints, Prepared
from srp4ctr_offline.source import EVENTS, Source
from srp4ctr_offline.timeline import events_in_time

_TIME, _ITEM = "time", "item"


@dataclass(frozen=True, eq=False)
class RawHistories:
    """All events as values rather than codes, sorted by user and then by order; user u's are `start[u]` to `start[u + 1]`.

    `parts` has the pieces of a stored event (contract/events.py): its time in milliseconds, its item id as JSON, and behind
    them its features. Of a user the latest `keep` are given.
    """

    start: Ints
    parts: pl.DataFrame
    keep: int

    @classmethod
    def read(cls, config: RunConfig, prepared: Prepared, keep: int, others: Iterable[Feature] = ()) -> Self:
        """From the tables that `prepared` was made of; DataError where they are others by now.

        `others` are behaviour features that models beside this one read: histories belong to no version, and have those of
        them that the table of events has.
        """
        features = prepared.transforms.features(BEHAVIOUR)
        own = {feature.name for feature in features}
        there = read_table(config.tables.folder, config.tables.events, {}).collect_schema().names()
        extra = {one.name: one for one in others if one.name not in own and one.name in there}
        schema = config.features.model_copy(update={"behaviour_features": (*features, *extra.values())})
        source = Source.read(config.model_copy(update={"features": schema}))
        sorting, start = events_in_time(source)
        same_users = np.array_equal(source.users, prepared.users.ids)
        if not (same_users and np.array_equal(start, prepared.events.start)):
            raise DataError(
                f"{config.tables.folder} has other users or events than were prepared; prepare, train and export again"
            )
        frame = source.frames[EVENTS]
        quoted = pl.Series([json.dumps(one.decode(), ensure_ascii=False) for one in source.items.tolist()])
        parts = [
            # Where no time is known, the event is older than all that will be acknowledged.
            pl.Series(_TIME, np.maximum(prepared.events.time_ms, 0)),
            quoted[source.item_of[EVENTS][sorting]].alias(_ITEM),
        ]
        for feature in (*features, *extra.values()):
            column = frame[feature.name][sorting]
            try:
                if feature.type == "numeric":
                    values = pl.Series(numbers_of(column, EVENTS)).fill_nan(None)
                else:
                    values = _texts(texts_of(column, EVENTS))
            except DataError:
                # It is of another type by now, which is nothing that this version must not be published for.
                if feature.name in own:
                    raise
                continue
            # A feature may have any name, those of the pieces before it, too.
            parts.append(values.alias(f"feature {feature.name}"))
        return cls(start, pl.DataFrame(parts), keep)

    def packed(self, users: NDArray[np.integer[Any]]) -> list[bytes]:
        """The users' latest events as they are stored, one a line, oldest first."""
        ends = self.start[users + 1]
        firsts = np.maximum(self.start[users], ends - self.keep)
        lengths = ends - firsts
        index = np.repeat(ends - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
        texts = self.parts[index].select(self._event())[_TIME].to_list()
        at = np.cumsum(lengths) - lengths
        return [
            "\n".join(texts[begin : begin + length]).encode()
            for begin, length in zip(at.tolist(), lengths.tolist(), strict=True)
        ]

    def _event(self) -> pl.Expr:
        names = self.parts.columns[2:]
        features = pl.lit("{}")
        if names:
            values = [pl.col(name).alias(name.removeprefix("feature ")) for name in names]
            features = pl.struct(values).struct.json_encode()
        return pl.format('[{},"",{},{}]', pl.col(_TIME), pl.col(_ITEM), features).alias(_TIME)


def _texts(texts: NDArray[np.bytes_]) -> pl.Series:
    """Canonical texts as strings, the empty text as null."""
    distinct, place = np.unique(texts, return_inverse=True)
    return pl.Series([text.decode() or None for text in distinct.tolist()], dtype=pl.String)[place]
