"""What a baseline's settings were chosen from: trials on validation rows, one seed each, and which of them the study takes."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srp4ctr.runtime.command import exit_code
from srp4ctr_offline.study.entries import cpu_minutes
from srp4ctr_offline.study.markdown import minutes_text, number, table
from srp4ctr_offline.study.measured import Record
from srp4ctr_offline.study.plan import Cell, StudyPlan, load_plan
from srp4ctr_offline.study.run import add_options, results_of, train_missing

NAME = "din-search"
Trial = dict[str, Any]


def trials(plan: StudyPlan, study: StudyPlan, records: Mapping[str, Record]) -> dict[str, list[Trial]]:
    """Finished trials by protocol, greatest validation AUC first, of the epoch of least logloss; test figures are not among them."""
    taken = {(cell.protocol, _digest(cell)) for cell in study.cells() if cell.seed == 1}
    found: dict[str, list[Trial]] = {protocol: [] for protocol in plan.protocols}
    for cell in plan.cells():
        if cell.key not in records:
            continue
        record = records[cell.key]
        history = record["history"]["finetune"]
        # As training chooses the epoch that it keeps.
        best = history[int(np.argmin([row["valid"] for row in history]))]
        found[cell.protocol].append(
            {
                "learning_rate": cell.config.finetune.learning_rate,
                "dropout": cell.plan.baseline.dropout,
                "rows_per_history": cell.config.finetune.rows_per_history,
                "shuffle_events": cell.config.finetune.shuffle_events,
                "valid_auc": record["valid"]["auc"],
                "valid_logloss": record["valid"]["logloss"],
                "best_epoch": best["epoch"],
                "epochs": record["epochs"],
                "cpu_minutes": cpu_minutes(record),
                "in_study": (cell.protocol, _digest(cell)) in taken,
            }
        )
    return {name: sorted(rows, key=lambda row: -float(row["valid_auc"])) for name, rows in found.items()}


def page(found: Mapping[str, Sequence[Trial]]) -> str:
    """The trials in Markdown."""
    blocks = [
        "# What DIN's settings were chosen from",
        (
            "Written by `python -m srp4ctr_offline.study.search`. One seed each; the finished model, of its best epoch and calibrated, "
            "on all validation rows. The greatest AUC is first, and what the study trains says so. The noise of a seed is about "
            ".002 AUC on the MovieLens rows and more on the others."
        ),
    ]
    for protocol, rows in found.items():
        lines = [
            [
                f"{row['learning_rate']:g}",
                f"{row['dropout']:g}",
                str(row["rows_per_history"]),
                "yes" if row["shuffle_events"] else "",
                number(row["valid_logloss"]),
                number(row["valid_auc"]),
                f"{row['best_epoch']} of {row['epochs']}",
                minutes_text(row["cpu_minutes"]),
                "yes" if row["in_study"] else "",
            ]
            for row in rows
        ]
        head = [
            "learning rate",
            "dropout",
            "rows a history",
            "shuffled each epoch",
            "logloss",
            "AUC",
            "best epoch",
            "CPU minutes",
            "in the study",
        ]
        blocks += [f"## {protocol}", table(head, lines) if lines else "No trial is finished."]
    return "\n\n".join(blocks) + "\n"


def _digest(cell: Cell) -> str:
    return cell.key.rsplit(".", 1)[1]


def main(argv: Sequence[str]) -> int:
    """Run or continue the search, and write its page."""
    parser = argparse.ArgumentParser(
        prog="python -m srp4ctr_offline.study.search",
        description=f"Trains the trials that have no record yet, and writes {NAME}.json and {NAME}.md.",
    )
    parser.add_argument("plan", type=Path, nargs="?", default=Path("configs/din-search.toml"))
    parser.add_argument("--study", type=Path, default=Path("configs/study.toml"), help="(%(default)s)")
    add_options(parser, jobs=1)
    arguments = parser.parse_args(argv)
    plan = load_plan(arguments.plan)
    results = results_of(arguments)
    failed = 0
    if not arguments.no_training:
        failed = train_missing(arguments.plan, list(plan.cells()), results, arguments.jobs)
    found = trials(plan, load_plan(arguments.study), results.records())
    (arguments.report / f"{NAME}.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.report / f"{NAME}.md").write_text(page(found))
    print(f"written: {arguments.report / NAME}.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code("search", lambda: main(sys.argv[1:])))
