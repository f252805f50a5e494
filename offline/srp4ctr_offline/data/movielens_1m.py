"""MovieLens 1M as canonical tables: every rating is an event and a labelled row, split by one clock for all users.

A user's validation and test rows stand in the order of time, behind his training rows, **and those stand in a seeded
random order**, for two reasons. In a known partial copy the time is missing from the training rows that are dislikes,
and from no others, so that whatever reads a training row's time, or its place among those that have one, reads its
label. And MovieLens ratings are made in one sitting, from pages of films: their order tells what the site showed, not
what the user turned to next. Keeping the likes in order and scattering the dislikes among them is no way out: a row that
fits its neighbours is then a like. So a training history is a set, from every copy the same one, nothing about order or
recency can be learned from it, and times are in none of the tables.
"""

from pathlib import Path

import numpy as np
import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.movielens import LIKE, TERMS, Expected, check_whole
from srp4ctr_offline.data.movielens_files import RawMovieLens
from srp4ctr_offline.data.report import Origin, Report
from srp4ctr_offline.data.tables import check_note, fingerprint, write_tables

SEED = 20240719
"""Of the order of training rows; another one makes other rows."""

MOVIELENS_1M = Expected(
    ratings=1_000_209,
    users=6_040,
    items=3_883,
    fingerprint="60cc1c25870fe8310d06a921ee7821c32949dda183096d1b768bca5655b2d560",
)

_PHASES = {"train": 0, "valid": 1, "test": 2}


def recipe(expected: Expected = MOVIELENS_1M) -> dict[str, str | int | float]:
    """What the tables depend on: whatever the source, it is the same ratings; `tables` counts this code's changes."""
    return {"dataset": "movielens-1m", "fingerprint": expected.fingerprint, "tables": 1}


def write_movielens_1m(out: Path, raw: RawMovieLens, expected: Expected = MOVIELENS_1M) -> Report:
    """Check `raw` and write its tables into `out`. Raises DataError where it is not a whole MovieLens 1M."""
    known = pl.all_horizontal(pl.col("user_id", "item_id", "rating", "split").is_not_null())
    placed = pl.col("order").is_not_null() | (pl.col("split") == "train")
    check_whole(raw, expected, known & placed)
    events, rows, items, users = canonical_tables(raw)
    found = fingerprint(rows)
    if found != expected.fingerprint:
        raise DataError(
            f"the ratings in {raw.source} are not those of the official archive; use a fresh copy "
            f"(check value {found[:16]} instead of {expected.fingerprint[:16]})"
        )
    origin = Origin(
        dataset="movielens-1m",
        source=raw.source,
        terms=TERMS,
        recipe=recipe(expected),
        notes=(
            *raw.notes,
            f"Label: 1 for a rating of {LIKE} or more. Rows are the ratings, and so are events",
            "Split: by time, at one cut for all users: 80 % of the ratings train, 10 % validate, 10 % test",
            "A user's training rows stand in a random order, which is the same from every copy; no table has times",
            check_note(found),
        ),
    )
    return write_tables(
        out, origin, events=events.lazy(), rows=rows.lazy(), items=items.lazy(), users=users.lazy()
    )


def canonical_tables(raw: RawMovieLens) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events, rows, items, users; `seq` is a row's place among its user's."""
    phase = pl.col("split").replace_strict(_PHASES, return_dtype=pl.Int8)
    # The draw goes by item, so that it does not depend on the order of the file.
    ratings = raw.ratings.with_columns(phase.alias("phase")).sort("user_id", "phase", "item_id")
    drawn = pl.Series(np.random.default_rng(SEED).random(ratings.height))
    place = pl.when(pl.col("phase") == _PHASES["train"]).then(drawn).otherwise(pl.col("order"))
    rows = (
        ratings.with_columns(place.alias("place"))
        .sort("user_id", "phase", "place")
        .select(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("row_id"),
            *("user_id", "item_id"),
            pl.int_range(pl.len(), dtype=pl.Int32).over("user_id").alias("seq"),
            "split",
            (pl.col("rating") >= LIKE).cast(pl.Int8).alias("label"),
            "rating",
        )
    )
    events = rows.select("user_id", "item_id", "seq", "rating", "label")
    users = raw.users.select("user_id", "gender", "age_code", "occupation_code", "zip_code")
    return events, rows, raw.items.sort("item_id"), users.sort("user_id")
