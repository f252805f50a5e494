"""Amazon Beauty as canonical tables: reviews are events, and rows are reviews beside items that were not bought.

Nobody knows what its users were shown, so that the rows are a stand-in for clicks: from a user's third review on, each
review is a positive row and is followed by a negative one, an item drawn with the popularity of all reviews which the
user never reviewed. Metrics on such rows say how well what was bought is told from what is popular, and nothing about
a click rate. A user's last review and its negative test, the last but one validate.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.amazon_beauty_files import REMEDY, RawBeauty, name_attributes
from srp4ctr_offline.data.report import Origin, Report
from srp4ctr_offline.data.tables import check_note, fingerprint, write_tables

SEED = 20240719
"""Of the negatives; another one makes other rows."""

FIRST_ROW = 2
"""Reviews a user has before his first row."""

FINGERPRINT = "6df0cbd6a46a0b89e2d88fae40e56c81b6ed0f3a2d4a4c2e1850e4bb8a6d3db4"

TERMS = (
    "no formal licence: the reviews are offered for research, and the repository of S3-Rec has no licence file; do not "
    "redistribute; cite J. McAuley, C. Targett, Q. Shi and A. van den Hengel, Image-Based Recommendations on Styles and "
    "Substitutes, SIGIR 2015, R. He and J. McAuley, Ups and Downs, WWW 2016, and K. Zhou et al., S3-Rec, CIKM 2020"
)


def recipe(expected: str = FINGERPRINT) -> dict[str, str | int | float]:
    """What the tables depend on: whatever the source, it is the same reviews; `tables` counts this code's changes."""
    return {"dataset": "amazon-beauty", "fingerprint": expected, "tables": 1}


def write_amazon_beauty(out: Path, raw: RawBeauty, expected: str = FINGERPRINT) -> Report:
    """Check `raw` and write its tables into `out`. Raises DataError where it is not the known data set."""
    _check(raw)
    events, rows, items, users = canonical_tables(raw)
    found = fingerprint(rows)
    if found != expected:
        raise DataError(
            f"{raw.source} does not hold the known reviews (check value {found[:16]} instead of {expected[:16]}); {REMEDY}"
        )
    origin = Origin(
        dataset="amazon-beauty",
        source=raw.source,
        terms=TERMS,
        recipe=recipe(expected),
        notes=(
            "Events: the reviews, in order. They have the resolution of a day, so that order within one is arbitrary",
            f"Rows: each review behind a user's first {FIRST_ROW} (label 1), and an item that he never reviewed (label 0)",
            "A negative is drawn with the popularity of all reviews, so that the mean label is no click rate",
            "Split: a user's last review and its negative test, the last but one validate",
            check_note(found),
        ),
    )
    return write_tables(
        out, origin, events=events.lazy(), rows=rows.lazy(), items=items.lazy(), users=users.lazy()
    )


def canonical_tables(raw: RawBeauty) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events, rows, items, users. A row's order is the number of its user's reviews before it."""
    place = pl.int_range(pl.len(), dtype=pl.Int32).over("user_id").alias("order")
    events = raw.reviews.sort("user_id", "order").with_columns(place).select("user_id", "item_id", "order")
    to_come = pl.len().over("user_id") - 1 - pl.col("order")
    split = (
        pl.when(to_come == 0)
        .then(pl.lit("test"))
        .when(to_come == 1)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )
    bought = events.with_columns(split.alias("split")).filter(pl.col("order") >= FIRST_ROW)
    negatives = pl.Series("item_id", list(_draw(events, bought["user_id"])), pl.Int32)
    positive, negative = (pl.lit(value, pl.Int8).alias("label") for value in (1, 0))
    rows = (
        pl.concat([bought.with_columns(positive), bought.with_columns(negatives, negative)])
        .sort("user_id", "order", "label", descending=[False, False, True])
        .select(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("row_id"),
            *("user_id", "item_id", "order", "split", "label"),
        )
    )
    return events, rows, name_attributes(raw.items), events.select("user_id").unique().sort("user_id")


def _draw(events: pl.DataFrame, users: pl.Series) -> Iterator[int]:
    """For each of `users` one item, drawn as often as it was reviewed, until it is one that the user never reviewed."""
    reviewed = {user: set(items) for user, items in events.group_by("user_id").agg("item_id").iter_rows()}
    pool, rng = events["item_id"].to_list(), np.random.default_rng(SEED)
    for user in users:
        item = pool[rng.integers(len(pool))]
        while item in reviewed[user]:
            item = pool[rng.integers(len(pool))]
        yield item


def _check(raw: RawBeauty) -> None:
    reviews, items = raw.reviews, raw.items
    faults = {
        "reviews lack a value": reviews.filter(pl.any_horizontal(pl.all().is_null())),
        "reviews are of an item without attributes": reviews.join(items, on="item_id", how="anti"),
        "items are listed twice or lack attributes": items.filter(
            pl.col("item_id").is_duplicated()
            | pl.any_horizontal(pl.all().is_null())
            | (pl.col("attribute_ids").list.len() == 0)
        ),
        # Else there would be nothing to draw a negative from.
        "reviews are by users who reviewed every item": reviews.filter(
            pl.col("item_id").n_unique().over("user_id") == reviews["item_id"].n_unique()
        ),
    }
    for fault, rows in faults.items():
        if rows.height:
            first = rows.row(0, named=True)
            raise DataError(f"{raw.source}: {rows.height:,} {fault}; the first is {first}; {REMEDY}")
