"""Copies of MovieLens 1M: the official archive, packed or unpacked, and a Parquet copy whose times may be incomplete.

All come out as a `RawMovieLens` of these columns. `ratings`: user_id, item_id, rating, split, order (grows with time
within a user's ratings of one split; null only in train). `items`: item_id, title, release_year, genres. `users`:
user_id, gender, age_code, occupation_code, zip_code.
"""

import http.client
from pathlib import Path

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.files import Columns, Place, holds, read_delimited, read_parquet_copy, unzipped
from srp4ctr_offline.data.movielens import YEAR
from srp4ctr_offline.data.movielens_fetch import download
from srp4ctr_offline.data.movielens_files import RawMovieLens

OFFICIAL_URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
OFFICIAL_PAGE = "https://grouplens.org/datasets/movielens/1m/"

FIRST_OF_VALID = {"user_id": 1875, "item_id": 1721}
"""Four likes share the second in which training ends. The known split has this one, the third in the file, after it."""

_AGAIN = f"get ml-1m.zip from {OFFICIAL_PAGE} and give it with --from"
_ARCHIVE = ("ratings.dat", "movies.dat", "users.dat")
_COPY = ("interactions.parquet", "items.parquet", "users.parquet")
_IDS: Columns = {"user_id": pl.Int32, "item_id": pl.Int32}
_USERS: Columns = {"user_id": pl.Int32, "gender": pl.String, "age_code": pl.Int8, "occupation_code": pl.Int8}


def fetch(url: str = OFFICIAL_URL) -> RawMovieLens:
    """Download the official archive. Raises DataError where it cannot be had or is damaged."""
    try:
        return read_zip(download(url), url)
    except (OSError, http.client.HTTPException, DataError) as error:
        raise DataError(f"{url} could not be used ({error}); on another machine, {_AGAIN}") from error


def read_local(path: Path) -> RawMovieLens:
    """Read a copy: the archive as a zip file, its folder, or the folder of a Parquet copy. Raises DataError."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist; --from takes ml-1m.zip, its unpacked folder, or a folder with {', '.join(_COPY)}"
        )
    try:
        if not path.is_dir():
            return read_zip(path.read_bytes(), str(path))
        return _read_copy(path) if holds(path, _COPY) else _read_archive(path, str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_zip(data: bytes, source: str) -> RawMovieLens:
    """Read the official archive's bytes. Raises DataError where they are damaged or something else."""
    with unzipped(data, source, _AGAIN) as root:
        return _read_archive(root, source)


def _read_archive(root: Place, source: str) -> RawMovieLens:
    place = next((place for place in (root, root / "ml-1m") if holds(place, _ARCHIVE)), None)
    if place is None:
        raise DataError(f"{source} holds neither {', '.join(_ARCHIVE)} nor {', '.join(_COPY)}; {_AGAIN}")

    def read(file: str, columns: Columns) -> pl.DataFrame:
        return read_delimited(place / file, columns, "::", source=source, remedy=_AGAIN)

    ratings = read("ratings.dat", {**_IDS, "rating": pl.Int8, "timestamp": pl.Int64})
    items = read("movies.dat", {"item_id": pl.Int32, "title": pl.String, "genres": pl.String})
    users = read("users.dat", {**_USERS, "zip_code": pl.String})
    return RawMovieLens(
        ratings=_split_by_time(ratings),
        items=items.select(
            "item_id",
            pl.col("title").str.replace(YEAR, ""),
            pl.col("title").str.extract(YEAR).cast(pl.Int16).alias("release_year"),
            pl.col("genres").str.split("|"),
        ),
        users=users,
        source=f"MovieLens 1M, the official archive ({source})",
    )


def _split_by_time(ratings: pl.DataFrame) -> pl.DataFrame:
    """The first 80 % of all ratings train, the next 10 % validate, the rest test. One second keeps the file's order."""
    last_of_its_second = pl.all_horizontal(pl.col(name) == value for name, value in FIRST_OF_VALID.items())
    ordered = ratings.sort("timestamp", last_of_its_second, maintain_order=True).with_row_index("order")
    valid_from, test_from = (ratings.height * tenths // 10 for tenths in (8, 9))
    split = (
        pl.when(pl.col("order") < valid_from)
        .then(pl.lit("train"))
        .when(pl.col("order") < test_from)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
    )
    # A rating without a time is a fault of the copy, and shall be seen as one.
    split = pl.when(pl.col("timestamp").is_not_null()).then(split)
    return ordered.select(*_IDS, "rating", split.alias("split"), "order")


def _read_copy(folder: Path) -> RawMovieLens:
    interactions, items, users = (folder / file for file in _COPY)
    columns: Columns = {**_IDS, "rating": pl.Int8, "period": pl.String, "order": pl.Int64}
    ratings = read_parquet_copy(interactions, columns, _AGAIN)
    names = {"train": "train", "val": "valid", "test": "test"}
    split = pl.col("period").replace_strict(names, default=None, return_dtype=pl.String)
    return RawMovieLens(
        ratings=ratings.select(*_IDS, "rating", split.alias("split"), "order"),
        items=read_parquet_copy(
            items,
            {
                "item_id": pl.Int32,
                "title": pl.String,
                "release_year": pl.Int16,
                "genres": pl.List(pl.String),
            },
            _AGAIN,
        ),
        users=read_parquet_copy(users, {**_USERS, "zip_code": pl.String}, _AGAIN),
        source=f"MovieLens 1M, a Parquet copy ({folder})",
    )
