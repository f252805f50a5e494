"""Requests out of a log instead of made-up ones."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from srp4ctr.contract.errors import DataError, DependencyMissing
from srp4ctr.contract.http_types import ScoreRequest
from srp4ctr.contract.records import SUFFIX
from srp4ctr_loadtest.load.workload import Question

QUESTIONS = 20_000
"""At most; the first of the log."""
PARQUET = ".parquet"


def read_questions(path: Path, deadline_ms: float | None = None) -> list[Question]:
    """The log's requests in their order; whether their users are known is not.

    A line is a record of the service (docs/contract.md) or the body of a POST /score. A Parquet file has a row a candidate:
    impression_id, user_id, item_id, in the order of what was shown. Raises DataError, which names file and line.
    """
    found = _impressions(path) if path.suffix == PARQUET else _lines(path)
    questions = []
    for body in itertools.islice(found, QUESTIONS):
        sent = body if deadline_ms is None else body | {"deadline_ms": deadline_ms}
        questions.append(Question(orjson.dumps(sent), body["user_id"], body["item_ids"]))
    if not questions:
        raise DataError(f"{path} holds no requests")
    return questions


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for file in sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else (path,):
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    yield _body(line, f"{file}:{number}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _body(line: bytes, where: str) -> dict[str, Any]:
    try:
        content = orjson.loads(line)
        if isinstance(content, dict) and "request" in content:
            content = content["request"]
        return ScoreRequest.model_validate(content).model_dump(exclude_defaults=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(f"{where}: no request: {field}: {first['msg']}") from None
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}") from None


def _impressions(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import polars as pl
    except ImportError as error:
        raise DependencyMissing(
            f"{path} is a Parquet file, and polars, which reads it,", "loadtest"
        ) from error
    try:
        rows = pl.read_parquet(path, columns=["impression_id", "user_id", "item_id"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} holds no impressions: {error}") from error
    shown = rows.group_by("impression_id", maintain_order=True).agg(pl.col("user_id").first(), "item_id")
    for row in shown.iter_rows(named=True):
        yield {"user_id": str(row["user_id"]), "item_ids": [str(item) for item in row["item_id"]]}
