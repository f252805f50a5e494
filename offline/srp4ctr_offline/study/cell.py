"""One cell of a study, in a process of its own: train, measure, leave the record for the runner to append."""

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from srp4ctr.nn.baselines import BASELINES
from srp4ctr.nn.ctr import CtrModel
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.runtime.metrics import METRICS, evaluate_rows
from srp4ctr_offline.checkpoint import load_model, new_model, save_model
from srp4ctr_offline.finetune import finetune
from srp4ctr_offline.predict import predict
from srp4ctr_offline.prepared import TEST, VALID, Prepared
from srp4ctr_offline.pretrain import pretrain
from srp4ctr_offline.run import git_commit, seed_everything
from srp4ctr_offline.study.conditions import CONDITIONS
from srp4ctr_offline.study.next_item import hit_rate, ndcg, rank_next
from srp4ctr_offline.study.plan import Cell, load_plan
from srp4ctr_offline.study.results import Results
from srp4ctr_offline.training import History


def run_cell(cell: Cell, results: Results) -> dict[str, Any]:
    """Train and measure; gives the record, the predictions and the checkpoint being written."""
    prepared = Prepared.load(results.prepared_folder(cell))
    record: dict[str, Any] = {
        "key": cell.key,
        "protocol": cell.protocol,
        "model": cell.model,
        "seed": cell.seed,
        "measure": cell.measure,
    }
    train = _next_item if cell.measure == "next_item" else _rows
    record |= train(cell, prepared, results)
    return record | {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
    }


def _rows(cell: Cell, prepared: Prepared, results: Results) -> dict[str, Any]:
    config = cell.config
    model, history, minutes = _train(cell, prepared, results)
    rows = prepared.rows.of(TEST)
    probability = predict(model, prepared, rows)
    results.save_predictions(cell.key, prepared.rows.row_id[rows], probability)
    folder = results.model_folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Srp4Ctr):
        save_model(model, prepared.transforms, folder)
    return {
        "test": _metrics(prepared, TEST, probability),
        "valid": _metrics(prepared, VALID, predict(model, prepared, prepared.rows.of(VALID))),
        "history": history,
        "cpu_minutes": minutes,
        "rows": len(prepared.rows.of("train")),
        "epochs": config.finetune.epochs,
    }


def _train(
    cell: Cell, prepared: Prepared, results: Results
) -> tuple[CtrModel, dict[str, History], dict[str, float]]:
    """The trained model, its histories, and the CPU minutes of the process by job."""
    config = cell.config
    model: CtrModel
    history: dict[str, History] = {}
    minutes: dict[str, float] = {}
    teacher = None
    if cell.teacher is not None:
        teacher = load_model(results.model_folder(cell.teacher), "finetune", cell.teacher.config, prepared)
        # What a teacher took is a price of its student.
        minutes["teacher"] = sum(results.records()[cell.teacher.key]["cpu_minutes"].values())
    began = time.process_time()
    if cell.plan.kind in BASELINES:
        seed_everything(config)
        model = BASELINES[cell.plan.kind](cell.plan.baseline, prepared.transforms.fields, prepared.max_events)
    elif cell.plan.pretrained:
        model, _, history["pretrain"] = pretrain(config, prepared)
        minutes["pretrain"] = (time.process_time() - began) / 60
        began = time.process_time()
    else:
        seed_everything(config)
        model = new_model(config, prepared)
    history["finetune"] = finetune(config, prepared, model, teacher, pretrained=cell.plan.pretrained)
    minutes["finetune"] = (time.process_time() - began) / 60
    return model, history, {name: round(value, 2) for name, value in minutes.items()}


def _next_item(cell: Cell, prepared: Prepared, results: Results) -> dict[str, Any]:
    began = time.process_time()
    model, objective, history = pretrain(cell.config, prepared)
    minutes = (time.process_time() - began) / 60
    folder = results.model_folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, prepared.transforms, folder)
    measured: dict[str, Any] = {
        "history": {"pretrain": history},
        "cpu_minutes": {"pretrain": round(minutes, 2)},
    }
    for name, back in (("test", 0), ("valid", 1)):
        ranks = rank_next(model, objective, prepared, back=back)
        measured[name] = {
            "users": len(ranks.sampled),
            "hr10": hit_rate(ranks.sampled),
            "ndcg10": ndcg(ranks.sampled),
            "hr10_all": hit_rate(ranks.all),
            "ndcg10_all": ndcg(ranks.all),
        }
    return measured


def _metrics(
    prepared: Prepared, split: str, probability: np.ndarray[Any, np.dtype[np.float64]]
) -> dict[str, float]:
    rows = prepared.rows.of(split)
    value = evaluate_rows(prepared.rows.label[rows], prepared.rows.user[rows], probability, draws=1).value
    return {name: round(float(value[i]), 6) for i, name in enumerate(METRICS)}


def main(argv: Sequence[str]) -> int:
    """`PLAN RESULTS KEY`: what the runner calls; prints the record as the last line.

    `PLAN RESULTS KEY CONDITION` measures the trained cell under that condition instead, and leaves its predictions.
    """
    plan, folder, key, *condition = argv
    results = Results(Path(folder))
    cell = next(one for one in load_plan(Path(plan)).cells() if one.key == key)
    if condition:
        prepared = Prepared.load(results.prepared_folder(cell))
        seed_everything(cell.config)
        model = load_model(results.model_folder(cell), "finetune", cell.config, prepared)
        rows = prepared.rows.of(TEST)
        probability = predict(model, prepared, rows, CONDITIONS[condition[0]])
        results.save_predictions(f"{key}.{condition[0]}", prepared.rows.row_id[rows], probability)
    else:
        print("\n" + json.dumps(run_cell(cell, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
