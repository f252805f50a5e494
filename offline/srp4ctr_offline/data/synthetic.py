"""A synthetic data set whose true click probability is known, of any size, in memory that does not grow with users."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.report import Origin, Report
from srp4ctr_offline.data.synthetic_catalogue import Floats, make_catalogue
from srp4ctr_offline.data.synthetic_clicks import fit_intercept, respond
from srp4ctr_offline.data.synthetic_config import TEST_FROM, USER_STREAM, VALID_FROM, SyntheticConfig
from srp4ctr_offline.data.synthetic_users import (
    DEVICES,
    EVENT_TYPES,
    POSITIONS,
    WARM_UP,
    Timelines,
    draw_timelines,
)
from srp4ctr_offline.data.tables import write_tables

_BLOCK = 1024
"""Users generated at once, and so what memory depends on. Changing it changes the data."""


def write_synthetic(out: Path, config: SyntheticConfig) -> Report:
    """Generate the tables into `out`. Raises DataError where it cannot be written."""
    catalogue = make_catalogue(config)
    intercept = fit_intercept(catalogue, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".parts-") as name:
            parts = Path(name)
            for first in tqdm(range(0, config.users, _BLOCK), desc="generate", unit=f" x {_BLOCK} users"):
                users = range(first, min(first + _BLOCK, config.users))
                timelines = draw_timelines(catalogue, config, (USER_STREAM, first // _BLOCK), users)
                impressions = _impressions(timelines, users, *respond(catalogue, timelines, intercept))
                impressions.write_parquet(parts / f"impressions-{first:012}.parquet", compression="lz4")
                timelines.users.write_parquet(parts / f"users-{first:012}.parquet", compression="lz4")
            every = pl.scan_parquet(parts / "impressions-*.parquet")
            return write_tables(
                out,
                _origin(config),
                events=_events(every),
                rows=_rows(every),
                items=catalogue.table.lazy(),
                users=pl.scan_parquet(parts / "users-*.parquet"),
            )
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}; choose another folder with --out") from error


def _impressions(
    timelines: Timelines, users: range, probability: Floats, clicked: NDArray[np.bool_]
) -> pl.DataFrame:
    user, place = np.nonzero(timelines.active)
    return pl.DataFrame(
        {
            "user": user + users.start,
            "item": timelines.item[user, place],
            "timestamp": timelines.timestamp[user, place],
            "is_row": place >= WARM_UP,
            "label": clicked[user, place].astype(np.int8),
            "true_probability": probability[user, place],
            "device": pl.Series(DEVICES).gather(timelines.device[user, place]),
            "position": timelines.position[user, place].astype(np.int8),
            "event_type": pl.Series(EVENT_TYPES).gather(timelines.event_type[user, place]),
            "dwell_seconds": timelines.dwell_seconds[user, place],
        }
    )


_KEYS = (
    pl.format("u{}", "user").alias("user_id"),
    pl.format("i{}", "item").alias("item_id"),
    # No two impressions of a user share a second, so that time itself is the order, and one for all users.
    pl.col("timestamp").alias("order"),
    pl.col("timestamp"),
)


def _rows(impressions: pl.LazyFrame) -> pl.LazyFrame:
    time = pl.col("timestamp")
    return (
        impressions.filter("is_row")
        .with_row_index("row_id")
        .select(
            pl.col("row_id").cast(pl.Int64),
            *_KEYS,
            "label",
            "true_probability",
            (time // 3600 % 24).cast(pl.Int8).alias("hour"),
            "device",
            "position",
            pl.when(time < VALID_FROM)
            .then(pl.lit("train"))
            .when(time < TEST_FROM)
            .then(pl.lit("valid"))
            .otherwise(pl.lit("test"))
            .alias("split"),
        )
    )


def _events(impressions: pl.LazyFrame) -> pl.LazyFrame:
    return impressions.filter(pl.col("label") == 1).select(*_KEYS, "event_type", "dwell_seconds", "label")


def _origin(config: SyntheticConfig) -> Origin:
    return Origin(
        dataset="synthetic",
        source=f"srp4ctr data synthetic, {config}",
        terms="none: every value is drawn by this project's generator",
        recipe=config.recipe,
        notes=(
            "Label: 1 with the probability in the column true_probability, which no model may read",
            f"Position: 1 (top) to {POSITIONS}, at random; the lower, the less true_probability, which counts it in",
            "Split: by time, at one cut for all users; items launched with the test part are in no other",
        ),
    )
