"""Copies of Amazon Beauty (5-core, as prepared for S3-Rec): the two files of that repository, or a Parquet copy."""

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.files import Columns, holds, read_parquet_copy

OFFICIAL_PAGE = "https://github.com/RUCAIBox/CIKM2020-S3Rec"

REMEDY = (
    f"get Beauty.txt and Beauty_item2attributes.json from the folder data of {OFFICIAL_PAGE}, "
    "put them into one folder and give it with --from"
)

_ORIGINALS = ("Beauty.txt", "Beauty_item2attributes.json")
_COPY = ("interactions.parquet", "items.parquet")

_REVIEWS: Columns = {"user_id": pl.Int32, "item_id": pl.Int32, "order": pl.Int32}
_ATTRIBUTES: Columns = {"item_id": pl.Int32, "attribute_ids": pl.List(pl.Int16)}


@dataclass(frozen=True, eq=False)
class RawBeauty:
    """What the source says. `reviews`: user_id, item_id, order (0 is a user's first). `items`: item_id, attribute_ids."""

    reviews: pl.DataFrame
    items: pl.DataFrame
    source: str


def read_local(path: Path | None) -> RawBeauty:
    """Read a folder with either copy. Raises DataError where there is none, or a file is not what it should be."""
    if path is None:
        raise DataError(f"Amazon Beauty is not downloaded by this command; {REMEDY}")
    if holds(path, _COPY):
        return RawBeauty(
            reviews=read_parquet_copy(path / _COPY[0], _REVIEWS, REMEDY),
            items=read_parquet_copy(path / _COPY[1], _ATTRIBUTES, REMEDY),
            source=f"Amazon Beauty, a Parquet copy of the files of S3-Rec ({path})",
        )
    if holds(path, _ORIGINALS):
        return RawBeauty(
            reviews=_read_sequences(path / _ORIGINALS[0]),
            items=_read_attributes(path / _ORIGINALS[1]),
            source=f"Amazon Beauty, the files of S3-Rec ({path})",
        )
    raise DataError(f"{path} holds neither {' and '.join(_ORIGINALS)} nor {' and '.join(_COPY)}; {REMEDY}")


def _read_sequences(path: Path) -> pl.DataFrame:
    """A line is a user and what he reviewed, first to last."""
    users: list[int] = []
    items: list[list[int]] = []
    try:
        for line in path.read_text().splitlines():
            user, *reviewed = map(int, line.split())
            users.append(user)
            items.append(reviewed)
        lists = pl.DataFrame(
            {"user_id": users, "item_id": items},
            schema={"user_id": pl.Int32, "item_id": pl.List(pl.Int32)},
        )
    except (OSError, ValueError, OverflowError, TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}, line {len(users) + 1}, is not 'user item item ...' in whole numbers ({error}); {REMEDY}"
        ) from error
    order = pl.int_ranges(pl.col("item_id").list.len(), dtype=pl.Int32).alias("order")
    return lists.with_columns(order).filter(pl.col("item_id").list.len() > 0).explode("item_id", "order")


def _read_attributes(path: Path) -> pl.DataFrame:
    try:
        known = {int(item): attributes for item, attributes in json.loads(path.read_text()).items()}
        return pl.DataFrame(
            {"item_id": list(known), "attribute_ids": list(known.values())}, schema=dict(_ATTRIBUTES)
        )
    except (
        OSError,
        ValueError,
        OverflowError,
        AttributeError,
        TypeError,
        pl.exceptions.PolarsError,
    ) as error:
        raise DataError(
            f"{path} is not JSON of the form {{item: [attribute ids]}} ({error}); {REMEDY}"
        ) from error


def name_attributes(items: pl.DataFrame) -> pl.DataFrame:
    """Tell apart the anonymous ids of `attribute_ids`: the brand, where known, and then the path of categories.

    A path begins with its department, so an id that begins some lists and comes second in others, behind a brand, is
    a department. A list that begins with any other id has its brand there.
    """
    lists = items["attribute_ids"].to_list()
    begins, second = ({attributes[at] for attributes in lists if len(attributes) > at} for at in (0, 1))
    departments = sorted(begins & second)
    first = pl.col("attribute_ids").list.first()
    branded = ~first.is_in(departments)
    path = pl.when(branded).then(pl.col("attribute_ids").list.slice(1)).otherwise("attribute_ids")
    return items.select(
        "item_id",
        pl.when(branded).then(first).alias("brand_id"),
        path.list.unique(maintain_order=True).alias("category_ids"),
        path.list.first().alias("category_l1_id"),
        "attribute_ids",
    ).sort("item_id")
