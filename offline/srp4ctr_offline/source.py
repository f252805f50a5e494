"""The four canonical tables of a run, read and checked: what `prepare` begins with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.schema import Feature, FeatureSchema
from srp4ctr.contract.vocabulary import Texts
from srp4ctr_offline.columns import id_texts, numbers_of
from srp4ctr_offline.config import ColumnSplit, RunConfig, Tables
from srp4ctr_offline.data.tables import read_table

ROW_ID = "row_id"
"""Optional column of the rows table, by which predictions are known; else the row's place in the file."""

EVENTS, ROWS, ITEMS, USERS = TABLES = ("events", "rows", "items", "users")


@dataclass(frozen=True, eq=False)
class Source:
    """The tables as frames, and who and what they speak of.

    `users` and `items` are the sorted ids that any table names; `user_of` and `item_of` give, by table, the place of
    each row's user and item among them; `order` gives, by table, each row's order.
    """

    frames: dict[str, pl.DataFrame]
    one_file: bool
    users: Texts
    items: Texts
    user_of: dict[str, NDArray[np.int32]]
    item_of: dict[str, NDArray[np.int32]]
    order: dict[str, NDArray[np.int64] | NDArray[np.float64]]

    @classmethod
    def read(cls, config: RunConfig, only_users: Sequence[str] | None = None) -> Self:
        """Read what the configuration names; DataError names the table and the column that is wrong.

        With `only_users`, of events, rows and users those alone that are theirs.
        """
        schema, tables = config.features, config.tables
        theirs = None if only_users is None else pl.col(schema.user_id).cast(pl.String).is_in(only_users)
        frames = {
            EVENTS: _read(tables, tables.events, _event_columns(schema), theirs),
            ROWS: _checked_row_ids(_read(tables, tables.rows, _row_columns(config), theirs, ROW_ID)),
            ITEMS: _read(tables, tables.items, _feature_columns(schema.item_id, schema.item_attributes)),
            USERS: _read(
                tables, tables.users, _feature_columns(schema.user_id, schema.user_features), theirs
            ),
        }
        user_texts = {t: id_texts(frames[t][schema.user_id], t) for t in (EVENTS, ROWS, USERS)}
        item_texts = {t: id_texts(frames[t][schema.item_id], t) for t in (EVENTS, ROWS, ITEMS)}
        for table, texts in ((USERS, user_texts[USERS]), (ITEMS, item_texts[ITEMS])):
            values, counts = np.unique(texts, return_counts=True)
            if (counts > 1).any():
                twice = values[counts > 1][0].decode()
                raise DataError(f"{table}: the id {twice!r} stands in more than one row; keep one of them")
        users, user_of = _places(user_texts)
        items, item_of = _places(item_texts)
        order = {t: _order(frames[t][schema.order], t) for t in (EVENTS, ROWS)}
        if order[EVENTS].dtype != order[ROWS].dtype:
            raise DataError(
                f"{schema.order}: integers in one of events and rows, fractions in the other; use one kind"
            )
        return cls(frames, tables.one_file, users, items, user_of, item_of, order)


def labels(column: pl.Series, table: str) -> NDArray[np.int8]:
    """Labels [N], each 0 or 1; raises DataError."""
    wrong = column.filter(column.is_null() | ~column.cast(pl.Float64, strict=False).is_in([0.0, 1.0]))
    if len(wrong):
        raise DataError(
            f"{table}.{column.name}: a label must be 0 or 1, and {len(wrong)} are not, such as {wrong[0]!r}"
        )
    return column.cast(pl.Int8).to_numpy()


def _checked_row_ids(rows: pl.DataFrame) -> pl.DataFrame:
    if ROW_ID in rows.columns:
        column = rows[ROW_ID]
        if not column.dtype.is_integer() or column.null_count() or column.n_unique() < len(column):
            raise DataError(
                f"{ROWS}.{ROW_ID}: must be integers, each once, and never null; or leave the column out"
            )
    return rows


def _places(texts: dict[str, Texts]) -> tuple[Texts, dict[str, NDArray[np.int32]]]:
    distinct = np.unique(np.concatenate(list(texts.values())))
    return distinct, {table: np.searchsorted(distinct, own).astype(np.int32) for table, own in texts.items()}


def _order(column: pl.Series, table: str) -> NDArray[np.int64] | NDArray[np.float64]:
    numbers = numbers_of(column, table)
    missing = int(np.isnan(numbers).sum())
    if missing:
        raise DataError(
            f"{table}.{column.name}: {missing} rows have no order, so that they have no place in a history; "
            "drop them, or give them one that their label did not decide"
        )
    # As float64, neighbouring nanoseconds would be one moment.
    return column.cast(pl.Int64).to_numpy() if column.dtype.is_integer() else numbers


def _read(
    tables: Tables,
    file: str,
    needed: dict[str, str],
    only: pl.Expr | None = None,
    optional: str | None = None,
) -> pl.DataFrame:
    table = read_table(tables.folder, file, needed)
    wanted = [name for name in table.collect_schema().names() if name in needed or name == optional]
    chosen = table.select(wanted)
    return (chosen if only is None else chosen.filter(only)).collect()


def _event_columns(schema: FeatureSchema) -> dict[str, str]:
    columns: dict[str, Any] = {
        schema.user_id: "schema.user_id",
        schema.item_id: "schema.item_id",
        schema.order: "schema.order",
    }
    columns |= {schema.timestamp: "schema.timestamp"} if schema.timestamp else {}
    columns |= {schema.event_label: "schema.event_label"} if schema.event_label else {}
    return columns | {feature.name: "schema.behaviour_features" for feature in schema.behaviour_features}


def _row_columns(config: RunConfig) -> dict[str, str]:
    schema = config.features
    columns = {
        schema.user_id: "schema.user_id",
        schema.item_id: "schema.item_id",
        schema.order: "schema.order",
        schema.label: "schema.label",
    }
    columns |= {config.split.column: "split.column"} if isinstance(config.split, ColumnSplit) else {}
    return columns | {feature.name: "schema.context_features" for feature in schema.context_features}


def _feature_columns(key: str, features: tuple[Feature, ...]) -> dict[str, str]:
    return {key: "the table's id"} | {feature.name: "a feature of the schema" for feature in features}
