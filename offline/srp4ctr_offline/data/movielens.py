"""MovieLens 100K as canonical tables: every rating is an event and a labelled row; a like (4 or 5) is a click."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.movielens_files import GENRES, RawMovieLens
from srp4ctr_offline.data.report import Origin, Report
from srp4ctr_offline.data.tables import fingerprint, write_tables

LIKE = 4
"""The least rating that counts as a click."""

TERMS = (
    "research use, no redistribution and no commercial use without permission of GroupLens; cite F. M. Harper and "
    "J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015"
)

# One film of the archive is "... (1995) (V)": released on video.
YEAR = r"\s*\((\d{4})\)(?:\s*\(V\))?\s*$"


@dataclass(frozen=True)
class Expected:
    """What a whole copy holds; `fingerprint` is of its rows, see `tables.fingerprint`."""

    ratings: int
    users: int
    items: int
    fingerprint: str


MOVIELENS_100K = Expected(
    ratings=100_000,
    users=943,
    items=1_682,
    fingerprint="74522047c8c20fa99d59b3e0965b02c72c79e537fed1179f3471443e70995d05",
)


def recipe(expected: Expected = MOVIELENS_100K) -> dict[str, str | int | float]:
    """What the tables depend on: whatever the source, it is the same ratings; `tables` counts this code's changes."""
    return {"dataset": "movielens-100k", "fingerprint": expected.fingerprint, "tables": 1}


def write_movielens(out: Path, raw: RawMovieLens, expected: Expected = MOVIELENS_100K) -> Report:
    """Check `raw` and write its tables into `out`. Raises DataError where it is not a whole MovieLens 100K."""
    check_whole(raw, expected, pl.all_horizontal(pl.all().is_not_null()))
    events, rows, items, users = canonical_tables(raw)
    if fingerprint(rows) != expected.fingerprint:
        raise DataError(
            f"the ratings in {raw.source} are not those of the official archive; use a fresh copy"
        )
    origin = Origin(
        dataset="movielens-100k",
        source=raw.source,
        terms=TERMS,
        recipe=recipe(expected),
        notes=(
            *raw.notes,
            f"Label: 1 for a rating of {LIKE} or more. Rows are the ratings, and so are events",
        ),
    )
    return write_tables(
        out, origin, events=events.lazy(), rows=rows.lazy(), items=items.lazy(), users=users.lazy()
    )


def canonical_tables(raw: RawMovieLens) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events, rows, items, users. A user's ratings of one second keep the source's order."""
    events = (
        raw.ratings.sort("user_id", "timestamp", maintain_order=True)
        .select(
            pl.col("user_id", "item_id").cast(pl.Int32),
            pl.int_range(pl.len()).over("user_id").cast(pl.Int32).alias("order"),
            "timestamp",
            pl.col("rating").cast(pl.Int8),
            (pl.col("rating") >= LIKE).cast(pl.Int8).alias("label"),
        )
        .rechunk()
    )
    time = pl.from_epoch("timestamp", time_unit="s").dt
    rows = events.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row_id"),
        *("user_id", "item_id", "order", "timestamp", "label"),
        time.hour().alias("hour"),
        (time.weekday() - 1).alias("weekday"),
    )
    flagged = [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in GENRES]
    items = raw.items.select(
        pl.col("item_id").cast(pl.Int32),
        pl.col("title").str.replace(YEAR, ""),
        pl.col("title").str.extract(YEAR).cast(pl.Int16).alias("release_year"),
        pl.concat_list(flagged).list.drop_nulls().alias("genres"),
    ).sort("item_id")
    users = raw.users.select(
        pl.col("user_id").cast(pl.Int32), pl.col("age").cast(pl.Int16), "gender", "occupation", "zip_code"
    ).sort("user_id")
    return events, rows, items, users


def check_whole(raw: RawMovieLens, expected: Expected, present: pl.Expr) -> None:
    """Raise DataError unless `raw` has the expected counts, and every rating all that `present` tells it must have."""
    found = (
        raw.ratings.height,
        raw.users["user_id"].drop_nulls().n_unique(),
        raw.items["item_id"].drop_nulls().n_unique(),
    )
    if found != (expected.ratings, expected.users, expected.items):
        raise DataError(
            f"{raw.source} is not whole: {found[0]:,} ratings, {found[1]:,} users and {found[2]:,} items instead of "
            f"{expected.ratings:,}, {expected.users:,} and {expected.items:,}; use a fresh copy"
        )
    wrong = raw.ratings.filter(
        ~present
        | ~pl.col("rating").is_between(1, 5)
        | ~pl.col("user_id").is_in(raw.users["user_id"].implode())
        | ~pl.col("item_id").is_in(raw.items["item_id"].implode())
    )
    if wrong.height:
        raise DataError(
            f"{raw.source}: {wrong.height:,} ratings lack a value, are not 1 to 5, or are of an unlisted user or item; "
            f"the first is {wrong.row(0, named=True)}; use a fresh copy"
        )
