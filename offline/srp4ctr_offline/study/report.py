"""The study's report: `quality.json` for programs, `quality.md` and `quality.html` for people.

It reads the plan and the results alone, and is the same, byte by byte, of the same results.
"""

import json
from collections import Counter
from pathlib import Path

from srp4ctr.runtime.metrics import DRAWS
from srp4ctr_offline.study.aims import aims_table, next_item_aims, rows_aims
from srp4ctr_offline.study.compare import ENOUGH_SEEDS
from srp4ctr_offline.study.cost import cost_of
from srp4ctr_offline.study.entries import entries
from srp4ctr_offline.study.equal_cpu import equal_cpu_section
from srp4ctr_offline.study.markdown import bullets, number, seeds_text, table, thousands
from srp4ctr_offline.study.measured import Measured, load_measured
from srp4ctr_offline.study.next_item_section import next_item_section
from srp4ctr_offline.study.page import render_page
from srp4ctr_offline.study.plan import StudyPlan
from srp4ctr_offline.study.production import condition_differences, conditions_section, slices_section
from srp4ctr_offline.study.results import Results
from srp4ctr_offline.study.sections import (
    ablations_section,
    curves_section,
    models_section,
)
from srp4ctr_offline.study.serving import cost_section, costed_cells, frontier_section
from srp4ctr_offline.study.summary import setup_section, summary_section

NAME = "quality"
TITLE = "Quality study"


def write_report(plan: StudyPlan, results: Results, folder: Path) -> Path:
    """Write `quality.json`, `.md`, `.html` and the pictures in `quality/`; gives the HTML's path."""
    plots = folder / NAME
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("*.png"):
        old.unlink()
    measured = load_measured(plan, results)
    lines = ",\n".join(json.dumps(one, allow_nan=False) for one in entries(measured))
    (folder / f"{NAME}.json").write_text(f"[\n{lines}\n]\n")
    aims: list[tuple[str, str, str]] = []
    body: list[str] = []
    cost = None
    headline = next((one for one in measured if one.compared and one.reference in one.records), None)
    for one in measured:
        if not one.records:
            body += [f"## {one.protocol}", "No cell of this protocol is finished."]
            continue
        if one.measure == "next_item":
            body += next_item_section(one, plots)
            aims += [(f"{one.protocol}: {aim}", what, word) for aim, what, word in next_item_aims(one)]
            continue
        conditions = condition_differences(one, results)
        aims += [(f"{one.protocol}: {aim}", what, word) for aim, what, word in rows_aims(one, conditions)]
        body += _rows_heading(one)
        body += setup_section(one)
        body += models_section(one, plots)
        body += equal_cpu_section(one)
        body += ablations_section(one)
        if one is headline:
            cost = cost_of(costed_cells(one), results)
            body += frontier_section(one, cost, plots)
        body += conditions_section(one, conditions)
        body += slices_section(one)
        body += curves_section(one, plots)
        if one is headline and cost is not None:
            body += cost_section(one, cost)
    top = [*summary_section(headline, cost), *_opening(measured, plan), *_aims(aims)]
    text = "\n\n".join([f"# {TITLE}", *top, *body]) + "\n"
    (folder / f"{NAME}.md").write_text(text)
    page = folder / f"{NAME}.html"
    page.write_text(render_page(text, folder, TITLE))
    return page


def _opening(measured: list[Measured], plan: StudyPlan) -> list[str]:
    """What was measured and how, and what is missing."""
    blocks = [
        "## What was measured, and how",
        (
            "Written by `make study`, which trains what is missing and then writes this; nothing here is typed by hand. "
            "A cell is one model on one protocol with one seed."
        ),
        _protocols_table(measured),
        bullets(
            [
                (
                    "Rows, inputs, validation and calibration are the same for all models of a protocol, unless a model's "
                    "name says what it lacks. Epochs are chosen and probabilities calibrated on validation rows."
                ),
                (
                    "AUC over all test rows; GAUC: users' own AUC weighted by their rows; logloss; ECE of 15 bins. Intervals: "
                    f"95 % bootstrap over users, {DRAWS} draws, the same draws for all, so that differences are paired."
                ),
                (
                    f"Verdicts are on AUC: better or worse where the paired interval leaves out 0. With fewer than "
                    f"{ENOUGH_SEEDS} seeds a side it is called a lead and no claim."
                ),
                f"`{plan.reference}` is the model that the others are compared with.",
                (
                    "CPU minutes are of one thread, training only, on the machine that ran the cell: they compare models, "
                    "and say little of another machine."
                ),
                (
                    "Floors (`item_popularity`, `item_mean_user_residual`, `logistic_regression`) are no networks and have no "
                    "seeds. They see the same rows, and less of them: item and label, or no history."
                ),
            ]
        ),
        *_commits(measured),
    ]
    missing = _missing(measured)
    if missing:
        return [*blocks, "**Planned and missing:**", bullets(missing)]
    return [*blocks, "All planned cells are finished."]


def _protocols_table(measured: list[Measured]) -> str:
    rows = []
    for one in measured:
        planned = sum(len(seeds) for seeds in one.cells.values())
        done = sum(len(seeds) for seeds in one.records.values())
        test = thousands(len(one.rows)) if one.rows is not None else "-"
        users = thousands(len(set(one.compared.user.tolist()))) if one.compared else "-"
        share = number(float(one.compared.label.mean()), 3) if one.compared else "-"
        what = "labelled rows" if one.measure == "rows" else "next item"
        rows.append([one.protocol, what, test, users, share, str(len(one.cells)), f"{done} of {planned}"])
    head = ["protocol", "measure", "test rows", "test users", "clicked", "models", "cells done"]
    return table(head, rows)


def _commits(measured: list[Measured]) -> list[str]:
    commits = Counter(
        (record.get("git_commit") or "unknown")[:10]
        for one in measured
        for seeds in one.records.values()
        for record in seeds.values()
    )
    counted = ", ".join(f"{name} ({count})" for name, count in sorted(commits.items()))
    return [f"Commits that the cells were trained on top of: {counted}."] if commits else []


def _missing(measured: list[Measured]) -> list[str]:
    missing = []
    for one in measured:
        missing += [
            f"{one.protocol}: {name}, seed{'s' if len(seeds) > 1 else ''} {seeds_text(seeds)}"
            for name, seeds in one.missing().items()
        ]
        gone = one.without_predictions()
        if gone:
            missing.append(
                f"{one.protocol}: no predictions of {', '.join(gone)}, which are in no seed-average"
            )
    return missing


def _aims(aims: list[tuple[str, str, str]]) -> list[str]:
    if not aims:
        return []
    return [
        "## Aims",
        "Set before the study, which is free to miss them. Differences are paired and seed-averaged.",
        aims_table(aims),
    ]


def _rows_heading(measured: Measured) -> list[str]:
    prepared = measured.prepared
    assert prepared is not None
    source = prepared.report.get("data_fingerprint")
    blocks = [f"## {measured.protocol}"]
    if source:
        blocks.append(
            f"Histories keep the latest {prepared.max_events} events. Fingerprint of the data: `{source}`."
        )
    return blocks
