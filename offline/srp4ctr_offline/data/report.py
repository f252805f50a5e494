"""The data report: what the tables hold, where they came from, and what was dropped on the way."""

from collections.abc import Mapping
from datetime import UTC, datetime

import polars as pl
from pydantic import BaseModel, ConfigDict


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dropped(_Facts):
    """Rows of the source that the tables lack."""

    rows: int
    why: str


class Origin(_Facts):
    """What the tables were made from. Equal recipes make equal tables."""

    dataset: str
    source: str
    terms: str
    recipe: dict[str, str | int | float]
    notes: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()


class ColumnFacts(_Facts):
    """A column's type as polars names it, and how many of its values are null."""

    type: str
    nulls: int


class TableFacts(_Facts):
    """Height and columns of one table."""

    rows: int
    columns: dict[str, ColumnFacts]


class SplitFacts(_Facts):
    """Height of one part of the rows, and its mean label."""

    rows: int
    ctr: float


class Report(_Facts):
    """Facts of one data set. Users, items, `ctr` (the mean label) and the times are those of the labelled rows.

    Times are Unix seconds, None where the rows have no `timestamp` column; `splits` is empty where they have no
    `split` column.
    """

    origin: Origin
    tables: dict[str, TableFacts]
    users: int
    items: int
    ctr: float
    first_timestamp: int | None
    last_timestamp: int | None
    splits: dict[str, SplitFacts]

    def render(self) -> str:
        """The report as Markdown."""
        origin, rows = self.origin, self.tables["rows"].rows
        lines = [
            f"# Data report: {origin.dataset}",
            "",
            f"- Source: {origin.source}",
            *(f"- {note}" for note in origin.notes),
            f"- Terms: {origin.terms}",
            f"- Labelled rows: {rows:,} of {self.users:,} users and {self.items:,} items; CTR {self.ctr:.4f}",
            f"- Time: {_period(self.first_timestamp, self.last_timestamp)}",
            *(
                f"- Split {name}: {part.rows:,} rows; CTR {part.ctr:.4f}"
                for name, part in self.splits.items()
            ),
            *(f"- Dropped: {drop.rows:,} rows, because {drop.why}" for drop in origin.dropped),
            *([] if origin.dropped else ["- Dropped: nothing"]),
            "",
            "| table | rows | columns (nulls) |",
            "|---|---|---|",
        ]
        for name, table in self.tables.items():
            columns = ", ".join(
                f"{column} ({facts.nulls:,})" if facts.nulls else column
                for column, facts in table.columns.items()
            )
            lines.append(f"| {name} | {table.rows:,} | {columns} |")
        return "\n".join(lines) + "\n"


def describe(origin: Origin, tables: Mapping[str, pl.LazyFrame]) -> Report:
    """Read the facts of `tables` (events, rows, items, users), in bounded memory."""
    rows = tables["rows"]
    columns = rows.collect_schema()
    time = pl.col("timestamp") if "timestamp" in columns else pl.lit(None, pl.Int64)
    totals = _collect(
        rows.select(ctr=pl.col("label").mean(), first_timestamp=time.min(), last_timestamp=time.max())
    ).row(0, named=True)
    # Distinct values stream only in a query of their own.
    users, items = (_collect(rows.select(pl.col(key).n_unique())).item() for key in ("user_id", "item_id"))
    splits: dict[str, SplitFacts] = {}
    if "split" in columns:
        parts = _collect(rows.group_by("split").agg(rows=pl.len(), ctr=pl.col("label").mean()))
        known = {part.pop("split"): SplitFacts(**part) for part in parts.iter_rows(named=True)}
        splits = {name: known[name] for name in ("train", "valid", "test") if name in known}
    facts = {name: _table_facts(table) for name, table in tables.items()}
    return Report(origin=origin, tables=facts, users=users, items=items, splits=splits, **totals)


def _table_facts(table: pl.LazyFrame) -> TableFacts:
    schema = table.collect_schema()
    counts = _collect(table.select(pl.len().alias(""), pl.all().null_count())).row(0, named=True)
    columns = {name: ColumnFacts(type=str(dtype), nulls=counts[name]) for name, dtype in schema.items()}
    return TableFacts(rows=counts[""], columns=columns)


def _collect(query: pl.LazyFrame) -> pl.DataFrame:
    return query.collect(engine="streaming")


def _period(first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return "not in the tables"
    start, end = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") for at in (first, last))
    return f"{start} to {end} (UTC)"
