"""A study's results: one line of JSON for each finished cell, and its predictions beside it."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.study.plan import Cell


@dataclass(frozen=True)
class Results:
    """A folder that may be copied to another machine, where the study then goes on."""

    folder: Path

    @property
    def path(self) -> Path:
        """The records, appended to and never rewritten."""
        return self.folder / "results.jsonl"

    def records(self) -> dict[str, dict[str, Any]]:
        """Records of finished cells by the cells' keys; a line that was cut off is no record."""
        found = {}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                found[record["key"]] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number + 1 < len(lines):
                    raise DataError(f"{self.path}, line {number + 1} is no record: {error}") from error
        return found

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of a finished cell, in place of a last line that was cut off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            written = self.path.read_bytes()
            file.truncate(written.rfind(b"\n") + 1)
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def prediction_path(self, key: str) -> Path:
        """Where the predictions of a cell's test rows are."""
        return self.folder / "predictions" / f"{key}.parquet"

    def save_predictions(self, key: str, row_id: NDArray[np.int64], probability: NDArray[np.float64]) -> None:
        """Write the predictions of a cell, or of a cell under a condition; whole or not at all."""
        path = self.prediction_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        pl.DataFrame({"row_id": row_id, "probability": probability}).write_parquet(draft)
        draft.replace(path)

    def model_folder(self, cell: Cell) -> Path:
        """Where the cell's checkpoint is."""
        return self.folder / "models" / cell.key

    def prepared_folder(self, cell: Cell) -> Path:
        """Where the prepared data of the cell are."""
        return self.folder / "prepared" / cell.data_key

    def predictions(self, key: str, row_id: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Predictions [R] of the rows; None where they were not kept."""
        path = self.prediction_path(key)
        if not path.exists():
            return None
        frame = pl.read_parquet(path)
        if not np.array_equal(frame["row_id"].to_numpy(), row_id):
            raise DataError(f"{path} is of other rows; remove it and its line in {self.path}")
        probability: NDArray[np.float64] = frame["probability"].to_numpy()
        return probability


def source_of(*modules: ModuleType) -> bytes:
    """The modules' code, for a digest: what other code has computed is computed anew."""
    return "".join(inspect.getsource(one) for one in modules).encode()
