"""One trained model under what production does to it: stored states, states that lag behind, new items."""

from pathlib import Path
from typing import Any

import polars as pl

from srp4ctr.nn.model import Srp4Ctr
from srp4ctr_offline.metrics import METRICS, evaluate_rows
from srp4ctr_offline.predict import Condition, predict
from srp4ctr_offline.prepared import TEST, Prepared

CONDITIONS = {
    "state_float32": Condition(state_dtype="float32"),
    "state_float16": Condition(state_dtype="float16"),
    "state_int8": Condition(state_dtype="int8"),
    **{f"missing_{events}": Condition(missing_events=events) for events in (1, 4, 16, 64)},
    "new_items": Condition(new_items=True),
    "no_history": Condition(missing_events=1 << 30),
}


def measure_conditions(model: Srp4Ctr, prepared: Prepared, folder: Path, key: str) -> dict[str, Any]:
    """Test metrics under each condition; the predictions are kept beside the cell's own."""
    rows = prepared.rows.of(TEST)
    label, user = prepared.rows.label[rows], prepared.rows.user[rows]
    measured = {}
    for name, condition in CONDITIONS.items():
        probability = predict(model, prepared, rows, condition)
        pl.DataFrame({"row_id": prepared.rows.row_id[rows], "probability": probability}).write_parquet(
            folder / f"{key}.{name}.parquet"
        )
        value = evaluate_rows(label, user, probability, draws=1).value
        measured[name] = {metric: round(float(value[i]), 6) for i, metric in enumerate(METRICS)}
    return measured
