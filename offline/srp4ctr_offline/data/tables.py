"""The four canonical tables on disk: written whole or not at all, read with errors that name table and column."""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.report import Origin, Report, describe

TABLES = ("events", "rows", "items", "users")

REPORT = "report.json"
"""Written last: a folder that has it has all four tables."""

_ROW_GROUP = 262_144
"""Fixed, so that equal tables are equal bytes whatever the number of threads."""


def read_table(folder: Path, file: str, needed: Mapping[str, str]) -> pl.LazyFrame:
    """The table `folder/file`, not read yet.

    `needed` gives for each column that must be there what it is needed for. Raises DataError where the file or
    one of the columns is missing.
    """
    path = folder / file
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; make the tables with 'srp4ctr data', or name their folder in the configuration"
        )
    try:
        table = pl.scan_parquet(path)
        columns = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    for column, reason in needed.items():
        if column not in columns:
            raise DataError(f"{path} lacks the column {column!r} ({reason}); it has {', '.join(columns)}")
    return table


def write_tables(
    out: Path,
    origin: Origin,
    *,
    events: pl.LazyFrame,
    rows: pl.LazyFrame,
    items: pl.LazyFrame,
    users: pl.LazyFrame,
) -> Report:
    """Write the tables and their report (`report.json`, `report.md`) into `out`, in bounded memory.

    Everything is written beside its final place and renamed, the report last. Raises DataError where `out` cannot
    be written.
    """
    frames = dict(zip(TABLES, (events, rows, items, users), strict=True))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as name:
            draft = Path(name)
            for table, frame in frames.items():
                frame.sink_parquet(
                    draft / f"{table}.parquet", compression="zstd", row_group_size=_ROW_GROUP, statistics=True
                )
            written = {table: pl.scan_parquet(draft / f"{table}.parquet") for table in TABLES}
            report = describe(origin, written)
            (draft / "report.md").write_text(report.render())
            (draft / REPORT).write_text(report.model_dump_json(indent=1) + "\n")
            # Without its report the folder is incomplete, which it is while new tables replace old ones.
            (out / REPORT).unlink(missing_ok=True)
            for file in (*(f"{table}.parquet" for table in TABLES), "report.md", REPORT):
                (draft / file).replace(out / file)
    except OSError as error:
        raise DataError(
            f"cannot write the tables to {out}: {error}; choose another folder with --out"
        ) from error
    return report


def find_report(out: Path, recipe: Mapping[str, str | int | float]) -> Report | None:
    """The report of the whole tables in `out`, if they were made by `recipe`."""
    try:
        report = Report.model_validate_json((out / REPORT).read_bytes())
    except (OSError, ValidationError):
        return None
    whole = all((out / f"{table}.parquet").is_file() for table in TABLES)
    return report if whole and report.origin.recipe == recipe else None


def fingerprint(rows: pl.DataFrame) -> str:
    """SHA-256 of row_id, user_id, item_id and label, written as CSV: tells whether two copies have equal rows."""
    return hashlib.sha256(
        rows.select("row_id", "user_id", "item_id", "label").write_csv().encode()
    ).hexdigest()


def check_note(digest: str) -> str:
    """The report's line about a fingerprint: its first 16 digits are what people compare."""
    return f"Check value of the rows (SHA-256 of row_id, user_id, item_id, label as CSV, its start): {digest[:16]}"
