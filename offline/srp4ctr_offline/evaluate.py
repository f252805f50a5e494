"""`srp4ctr evaluate`: quality on held-out rows, with bootstrap intervals, beside the floors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from srp4ctr.runtime.metrics import METRICS, Floats, Quality, calibration_curve, evaluate_rows
from srp4ctr_offline.checkpoint import fingerprint, load_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.floors import FLOORS
from srp4ctr_offline.plots import plot_calibration
from srp4ctr_offline.predict import predict
from srp4ctr_offline.prepared import SPLITS, TEST, Prepared
from srp4ctr_offline.run import job_parser, resolve, seed_everything, start_stage, write_json


def evaluate(
    prepared: Prepared, probability: Floats, floors: dict[str, Floats], name: str, split: str
) -> dict[str, Any]:
    """Metrics of the model and of each floor on one split, and the model's paired differences from the floors."""
    rows = prepared.rows.of(split)
    label, user = prepared.rows.label[rows], prepared.rows.user[rows]
    model = evaluate_rows(label, user, probability)
    baselines: dict[str, Any] = {}
    for floor, chances in floors.items():
        quality: Quality = evaluate_rows(label, user, chances)
        baselines[floor] = quality.as_dict() | {"model_minus_this": model.difference(quality)}
    counts = {"rows": len(rows), "users": len(set(user.tolist()))}
    return {"split": split, "model": name} | counts | model.as_dict() | {"baselines": baselines}


def format_table(metrics: dict[str, Any]) -> str:
    """The evaluation as a table for people."""
    head = f"{'':<26}" + "".join(f"{name if name == 'logloss' else name.upper():>26}" for name in METRICS)
    rows = f"{metrics['rows']:,} {metrics['split']} rows of {metrics['users']:,} users"
    lines = [f"{rows}; 95 % bootstrap intervals", head]
    for name, row in {metrics["model"]: metrics, **metrics["baselines"]}.items():
        cells = (_cell(row[metric], row[f"{metric}_95"]) for metric in METRICS)
        lines.append(f"{name:<26}" + "".join(f"{cell:>26}" for cell in cells))
    lines.append("AUC of the model minus each floor, paired:")
    for name, row in metrics["baselines"].items():
        gap = row["model_minus_this"]["auc"]
        low, high = gap["interval_95"]
        apart = low is not None and high is not None and (low > 0 or high < 0)
        verdict = "0 is outside" if apart else "0 is within"
        lines.append(f"  {name:<24}{_cell(gap['difference'], gap['interval_95'], '+')}  {verdict}")
    return "\n".join(lines)


def _cell(value: float | None, interval: list[float | None], sign: str = "") -> str:
    texts = ["n/a" if x is None else f"{x:{sign}.4f}" for x in (value, *interval)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def save_predictions(prepared: Prepared, split: str, probability: Floats, path: Path) -> None:
    """Write `row_id` and `probability` of a split's rows as Parquet."""
    rows = prepared.rows.of(split)
    pl.DataFrame({"row_id": prepared.rows.row_id[rows], "probability": probability}).write_parquet(path)


def run(config: RunConfig, folder: Path, split: str) -> dict[str, Any]:
    """Evaluate a run's fine-tuned model; writes its stage and gives the metrics."""
    prepared = Prepared.load(folder / "prepared")
    stage = start_stage(folder / "evaluate", config)
    seed_everything(config)
    model = load_model(folder / "finetune", "finetune", config, prepared)
    rows = prepared.rows.of(split)
    probability = predict(model, prepared, rows, progress=True)
    floors = {name: floor(prepared, rows) for name, floor in FLOORS.items()}
    metrics = evaluate(prepared, probability, floors, config.model.state, split)
    write_json(stage / "metrics.json", metrics | {"fingerprint": fingerprint(model, prepared.transforms)})
    save_predictions(prepared, split, probability, stage / f"predictions-{split}.parquet")
    label = prepared.rows.label[rows]
    curves = {config.model.state: probability, **floors}
    plot_calibration(
        {name: calibration_curve(label, chances) for name, chances in curves.items()},
        stage / "calibration.png",
        f"Calibration on {split} rows",
    )
    return metrics


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    parser = job_parser(
        "evaluate",
        reads="the run's prepared/ and finetune/",
        writes="evaluate/ with metrics.json, predictions-SPLIT.parquet, calibration.png",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default=TEST, help="the rows to evaluate on (default: test)"
    )
    arguments = parser.parse_args(argv)
    config, folder = resolve(arguments)
    print(format_table(run(config, folder, arguments.split)))
    print(f"written to {folder / 'evaluate'}")
    return 0
