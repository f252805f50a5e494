"""Copies of MIND: a folder of the original archives (behaviors.tsv, news.tsv), or a Parquet copy of one.

Ids are numbers: the letters before them (U of users, N of news) are left out.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.manifest import sha256_file
from srp4ctr_offline.data.files import Columns, holds, read_delimited, read_parquet_copy

OFFICIAL_PAGE = "https://msnews.github.io"

REMEDY = f"get MIND-small or MIND-large from {OFFICIAL_PAGE}, unpack it, and give the folder with --from"

_ORIGINALS = ("behaviors.tsv", "news.tsv")
_COPY = ("impressions.parquet", "interactions.parquet", "items.parquet")

_BEHAVIORS: Columns = {
    "impression_id": pl.Int64,
    **dict.fromkeys(("user", "time", "history", "shown"), pl.String),
}
_NEWS: Columns = dict.fromkeys(
    ("news", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"),
    pl.String,
)
_SHOWN: Columns = {
    "impression_id": pl.Int64,
    "user_id": pl.Int32,
    "timestamp": pl.Int64,
    "position": pl.Int16,
    "item_id": pl.Int32,
    "label": pl.Int8,
}
_CLICKS: Columns = {"user_id": pl.Int32, "item_id": pl.Int32, "order": pl.Int32}
_ITEMS: Columns = {"item_id": pl.Int32, "category": pl.String, "subcategory": pl.String}


@dataclass(frozen=True, eq=False)
class RawMind:
    """What the source says.

    `shown`: impression_id, user_id, timestamp (Unix seconds), position, item_id, label. `clicks`, all of them before
    everything shown: user_id, item_id, order (0 is a user's first). `items`: item_id, category, subcategory.
    """

    shown: pl.DataFrame
    clicks: pl.DataFrame
    items: pl.DataFrame
    source: str


def digest(path: Path | None) -> str:
    """SHA-256 of the SHA-256 of the files that `read_local` would read. Raises DataError where there are none."""
    folder, files = _find(path)
    return hashlib.sha256("".join(sha256_file(folder / file) for file in files).encode()).hexdigest()


def read_local(path: Path | None) -> RawMind:
    """Read a folder with either copy. Raises DataError where there is none, or a file is not what it should be."""
    folder, files = _find(path)
    if files is _COPY:
        shown, clicks, items = (folder / file for file in _COPY)
        return RawMind(
            shown=read_parquet_copy(shown, _SHOWN, REMEDY),
            clicks=read_parquet_copy(clicks, _CLICKS, REMEDY),
            items=read_parquet_copy(items, _ITEMS, REMEDY),
            source=f"MIND, a Parquet copy ({folder})",
        )
    behaviors, news = (
        read_delimited(folder / file, columns, "\t", source=str(folder), remedy=REMEDY, encoding="utf-8")
        for file, columns in zip(_ORIGINALS, (_BEHAVIORS, _NEWS), strict=True)
    )
    impressions = behaviors.select(
        "impression_id",
        _number("user", "U").alias("user_id"),
        # The source names no time zone.
        pl.col("time").str.to_datetime("%m/%d/%Y %I:%M:%S %p", strict=False).dt.epoch("s").alias("timestamp"),
        "history",
        pl.col("shown").str.split(" "),
    )
    return RawMind(
        shown=_shown(impressions),
        clicks=_clicks(impressions),
        items=news.select(_number("news", "N").alias("item_id"), "category", "subcategory"),
        source=f"MIND, original files ({folder})",
    )


def _find(path: Path | None) -> tuple[Path, tuple[str, ...]]:
    if path is None:
        raise DataError(f"MIND is not downloaded by this command; {REMEDY}")
    files = next((files for files in (_COPY, _ORIGINALS) if holds(path, files)), None)
    if files is None:
        raise DataError(f"{path} holds neither {' and '.join(_ORIGINALS)} nor {', '.join(_COPY)}; {REMEDY}")
    return path, files


def _number(column: str, letter: str) -> pl.Expr:
    """The number behind `letter`; null where the text is something else."""
    return pl.col(column).str.extract(rf"^{letter}(\d+)$").cast(pl.Int32, strict=False)


def _shown(impressions: pl.DataFrame) -> pl.DataFrame:
    """`N1-0 N2-1` says that news 1 and 2 were shown and the second was clicked; a test set says `N1 N2`."""
    places = pl.int_ranges(pl.col("shown").list.len(), dtype=pl.Int16).alias("position")
    parts = pl.col("shown").str.extract_groups(r"^(?<news>N\d+)-(?<label>[01])$")
    return (
        impressions.drop("history")
        .with_columns(places)
        .explode("shown", "position")
        .with_columns(parts.struct.unnest())
        .with_columns(_number("news", "N").alias("item_id"), pl.col("label").cast(pl.Int8))
        .select(*_SHOWN)
    )


def _clicks(impressions: pl.DataFrame) -> pl.DataFrame:
    # In one archive a user has the same history in all his impressions. Were it not so, the earliest one has nothing
    # that came after a row.
    first = (
        impressions.sort("timestamp", "impression_id")
        .unique("user_id", keep="first", maintain_order=True)
        .drop_nulls("history")
        .with_columns(pl.col("history").str.split(" "))
    )
    order = pl.int_ranges(pl.col("history").list.len(), dtype=pl.Int32).alias("order")
    return (
        first.with_columns(order)
        .explode("history", "order")
        .select("user_id", _number("history", "N").alias("item_id"), "order")
    )
