"""Reading copies of public data sets: zip archives, delimited text, Parquet.

A file that is absent, damaged or something else raises a DataError that names it, and `remedy`: what to do about it.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import polars as pl

from srp4ctr.contract.errors import DataError

Place = Path | zipfile.Path
"""A file or folder, on disk or in a zip archive."""

Columns = Mapping[str, pl.DataType | type[pl.DataType]]
"""Columns by name, in the order of the file, and their types."""


@contextmanager
def unzipped(data: bytes, source: str, remedy: str) -> Iterator[zipfile.Path]:
    """The inside of the archive `data`; DataError where it turns out to be damaged or no zip file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield zipfile.Path(archive)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{source} is not a whole zip file ({error}); {remedy}") from error


def holds(folder: Place, files: Sequence[str]) -> bool:
    """Whether all of `files` are in `folder`."""
    return all((folder / file).is_file() for file in files)


def read_delimited(
    path: Place,
    columns: Columns,
    separator: str,
    *,
    source: str,
    remedy: str,
    encoding: Literal["latin-1", "utf-8"] = "latin-1",
) -> pl.DataFrame:
    """Lines of exactly `columns`, without header or quotes. A separator of several characters must not meet a tab."""
    data = path.read_bytes()
    if encoding != "utf-8":
        data = data.decode(encoding).encode()
    if len(separator) > 1:
        data, separator = data.replace(separator.encode(), b"\t"), "\t"
    try:
        return pl.read_csv(
            io.BytesIO(data),
            has_header=False,
            separator=separator,
            quote_char=None,
            schema=dict(columns),
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path.name} in {source} is not the official file ({reason}); {remedy}") from error


def read_parquet_copy(path: Path, columns: Columns, remedy: str) -> pl.DataFrame:
    """`columns` of a Parquet file, cast to their types."""
    try:
        table = pl.read_parquet(path, columns=list(columns))
        return table.select(pl.col(name).cast(dtype) for name, dtype in columns.items())
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path} is not a Parquet file with the columns {', '.join(columns)} ({reason}); {remedy}"
        ) from error
