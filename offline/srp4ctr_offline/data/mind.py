"""MIND as canonical tables: clicks of the weeks before are events, the news of logged impressions are rows.

`position`, the place in the shown list, is in the rows and is no feature: the source has shuffled the lists, so that it
is not the place where anybody saw the news. (`impression_id` groups the rows for metrics by impression.)
"""

from pathlib import Path

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.mind_files import REMEDY, RawMind
from srp4ctr_offline.data.report import Dropped, Origin, Report
from srp4ctr_offline.data.tables import check_note, fingerprint, write_tables

LATEST = 100
"""Clicks of a user that become events, the latest ones."""

TERMS = (
    "Microsoft Research License Terms: research use, no redistribution; cite F. Wu et al., MIND: A Large-scale Dataset "
    "for News Recommendation, ACL 2020"
)


def recipe(digest: str) -> dict[str, str | int | float]:
    """What the tables depend on: the source's files, by their digest, and this code's changes, counted by `tables`."""
    return {"dataset": "mind", "files": digest, "tables": 1}


def write_mind(out: Path, raw: RawMind, digest: str) -> Report:
    """Check `raw`, whose files have this digest, and write its tables into `out`. Raises DataError."""
    _check(raw)
    events, rows, items, users = canonical_tables(raw)
    earlier = raw.clicks.height - events.height
    dropped = (Dropped(rows=earlier, why=f"only a user's latest {LATEST} clicks are events"),)
    origin = Origin(
        dataset="mind",
        source=raw.source,
        terms=TERMS,
        recipe=recipe(digest),
        notes=(
            f"Events: each user's latest {LATEST} clicks before the time of the impressions",
            "Rows: what the impressions showed (label 1 if clicked). The source shuffled the lists: position is no feature",
            "Split: whole impressions by time, the first 70 % train, the next 10 % validate, the last 20 % test",
            "Times carry no zone in the source and stand as if they were UTC",
            check_note(fingerprint(rows)),
        ),
        dropped=dropped if earlier else (),
    )
    return write_tables(
        out, origin, events=events.lazy(), rows=rows.lazy(), items=items.lazy(), users=users.lazy()
    )


def canonical_tables(raw: RawMind) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events, rows, items, users. A user's events have the orders ... -2, -1, his impressions 0, 1, ..."""
    events = (
        raw.clicks.sort("user_id", "order")
        .with_columns(
            (pl.int_range(pl.len(), dtype=pl.Int32) - pl.len()).over("user_id").cast(pl.Int32).alias("order")
        )
        .filter(pl.col("order") >= -LATEST)
        .select("user_id", "item_id", "order")
    )
    impressions = raw.shown.select("timestamp", "impression_id", "user_id").unique()
    impressions = impressions.sort("timestamp", "impression_id").with_row_index("at")
    valid_from, test_from = (impressions.height * tenths // 10 for tenths in (7, 8))
    split = (
        pl.when(pl.col("at") < valid_from)
        .then(pl.lit("train"))
        .when(pl.col("at") < test_from)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
    )
    order = pl.int_range(pl.len(), dtype=pl.Int32).over("user_id")
    impressions = impressions.select("impression_id", "at", split.alias("split"), order.alias("order"))
    rows = (
        raw.shown.join(impressions, on="impression_id", how="left")
        .sort("at", "position")
        .select(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("row_id"),
            *("impression_id", "user_id", "item_id", "order", "position", "timestamp", "split", "label"),
        )
    )
    named = pl.concat([events["item_id"], rows["item_id"]]).unique().to_frame()
    unlisted = named.join(raw.items, on="item_id", how="anti")
    items = pl.concat([raw.items, unlisted], how="diagonal").sort("item_id")
    users = pl.concat([events["user_id"], rows["user_id"]]).unique().sort().to_frame()
    return events, rows, items, users


def _check(raw: RawMind) -> None:
    whose = pl.struct("user_id", "timestamp").n_unique().over("impression_id")
    faults = {
        "shown news lack a value (labels are missing from test sets: take a train or dev folder)": raw.shown.filter(
            pl.any_horizontal(pl.all().is_null())
        ),
        "labels are neither 0 nor 1": raw.shown.filter(~pl.col("label").is_in([0, 1])),
        "shown news are of an impression of several users or times": raw.shown.filter(whose > 1),
        "clicks of histories lack a value": raw.clicks.filter(pl.any_horizontal(pl.all().is_null())),
        "news are without an id or listed twice": raw.items.filter(
            pl.col("item_id").is_null() | pl.col("item_id").is_duplicated()
        ),
    }
    for fault, rows in faults.items():
        if rows.height:
            first = rows.row(0, named=True)
            raise DataError(f"{raw.source}: {rows.height:,} {fault}; the first is {first}; {REMEDY}")
    if raw.shown.is_empty():
        raise DataError(f"{raw.source} shows no news; {REMEDY}")
