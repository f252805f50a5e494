"""The study's figures as `quality.json` has them: one entry a finished cell, and one a floor."""

from typing import Any

from srp4ctr.runtime.metrics import METRICS
from srp4ctr_offline.study.measured import Measured, Record

ALL_ITEMS = "-all-items"
"""What a next-item protocol's name ends in where the target is ranked against all items."""

Entry = dict[str, Any]


def cpu_minutes(record: Record) -> float:
    """CPU minutes of all the cell's training."""
    return round(float(sum(record["cpu_minutes"].values())), 2)


def entries(one: Measured) -> list[Entry]:
    """`{protocol, model, seed, auc, gauc, logloss, ece, hr10, ndcg10, cpu_minutes, state_bytes}`, None for no figure."""
    found = []
    for model, seeds in one.records.items():
        for seed, record in sorted(seeds.items()):
            for protocol, figures in _test_figures(one, record).items():
                found.append(
                    _entry(protocol, model, seed, figures, cpu_minutes(record), record.get("state_bytes"))
                )
    if one.compared is not None:
        for floor in one.compared.floors:
            value = one.compared.quality(floor).value
            figures = {name: round(float(value[i]), 6) for i, name in enumerate(METRICS)}
            found.append(_entry(one.protocol, floor, None, figures, None, None))
    return found


def _test_figures(measured: Measured, record: Record) -> dict[str, dict[str, float]]:
    test = record["test"]
    if measured.measure == "rows":
        return {measured.protocol: {name: test[name] for name in METRICS}}
    return {
        measured.protocol: {"hr10": test["hr10"], "ndcg10": test["ndcg10"]},
        measured.protocol + ALL_ITEMS: {"hr10": test["hr10_all"], "ndcg10": test["ndcg10_all"]},
    }


def _entry(
    protocol: str,
    model: str,
    seed: int | None,
    figures: dict[str, float],
    minutes: float | None,
    state_bytes: int | None,
) -> Entry:
    values = {
        name: None if figures.get(name) is None else round(figures[name], 6)
        for name in (*METRICS, "hr10", "ndcg10")
    }
    return {
        "protocol": protocol,
        "model": model,
        "seed": seed,
        **values,
        "cpu_minutes": minutes,
        "state_bytes": state_bytes,
    }
