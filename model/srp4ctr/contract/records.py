"""Recorded requests: what a service was asked about one user, what it made of that, and what it answered.

A file of records has one JSON object a line; bytes are base64. They hold users' ids and states: whoever may read them may
read those.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError, model_validator

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.http_types import StateStatus, UserRequest
from srp4ctr.contract.schema import Strict

SUFFIX = ".jsonl"


class Record(Strict):
    """One user's question of a request, C candidates, and the full answer to it: its scores are the model's.

    Codes are those that the service computed with, so that a difference can be named by its feature.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    at_ms: int = Field(description="when it was answered, Unix milliseconds")
    request_id: str = Field(description="users of one batch share it")
    model_version: str
    items_revision: str | None = Field(
        default=None, description="revision of its item table; null: the bundle's own"
    )
    fingerprint: str = Field(description="of that version's bundle")
    request: UserRequest
    status: StateStatus
    state: bytes | None = Field(description="the user state that was used; null: the bundle's cold state")
    item_codes: list[list[int]] = Field(description="[C, Wi]")
    item_vectors: list[int] = Field(description="`checksums` of the candidates' vectors [C]")
    user_codes: list[int] = Field(description="[Wu], those that the request gives in place of the state's")
    context_codes: list[list[int]] = Field(description="[1 or C, Wc]")
    scores: list[float] = Field(description="click probabilities as they were served [C]")

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        candidates = len(self.request.item_ids)
        for name in ("item_codes", "item_vectors", "scores"):
            if len(getattr(self, name)) != candidates:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {candidates} item_ids")
        for name, values in self.request.candidate_features.items():
            if len(values) != candidates:
                raise ValueError(f"{name} has {len(values)} values for {candidates} item_ids")
        if len(self.context_codes) not in (1, candidates):
            raise ValueError(f"context_codes has {len(self.context_codes)} rows for {candidates} item_ids")
        for name in ("item_codes", "context_codes"):
            if len({len(row) for row in getattr(self, name)}) != 1:
                raise ValueError(f"{name} has rows of several lengths")
        return self

    def line(self) -> bytes:
        """The record as a line of a file."""
        return self.model_dump_json(exclude_defaults=True).encode() + b"\n"


def checksums(vectors: NDArray[np.floating[Any]]) -> list[int]:
    """CRC-32 of each of the vectors [C, V] as little-endian float32."""
    return [crc32(vector.tobytes()) for vector in vectors.astype("<f4")]


def read_records(paths: Sequence[Path]) -> Iterator[Record]:
    """The records of files, and of all files named `*.jsonl` in folders, in the order of their names.

    A last line that is cut off is left out: its file may be being written. Raises DataError, which names file and line.
    """
    for path in paths:
        for file in sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else (path,):
            yield from _read(file)


def _read(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Record.model_validate_json(line)
                except ValidationError as error:
                    if not line.endswith(b"\n"):
                        return
                    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
                    field = ".".join(map(str, first["loc"])) or "the line"
                    raise DataError(f"{path}:{number}: no record: {field}: {first['msg']}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
