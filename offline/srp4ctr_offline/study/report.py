"""The study's report: `quality.json` for programs, `quality.md` and `quality.html` for people.

It reads the plan, the results, and what it wrote before of protocols that it is not to renew or that have no results here; it is the
same, byte by byte, of the same results.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from srp4ctr.runtime.metrics import DRAWS
from srp4ctr_offline.study.aims import aims_table, next_item_aims, rows_aims
from srp4ctr_offline.study.compare import ENOUGH_SEEDS
from srp4ctr_offline.study.conditions import CONDITIONS
from srp4ctr_offline.study.cost import cost_of
from srp4ctr_offline.study.entries import entries
from srp4ctr_offline.study.equal_cpu import equal_cpu_section
from srp4ctr_offline.study.markdown import bullets, number, seeds_text, table, thousands
from srp4ctr_offline.study.measured import Measured, load_measured
from srp4ctr_offline.study.next_item_section import next_item_section
from srp4ctr_offline.study.page import render_page
from srp4ctr_offline.study.part import Part, commits_of, load_part
from srp4ctr_offline.study.plan import StudyPlan
from srp4ctr_offline.study.production import (
    Conditions,
    condition_differences,
    conditions_section,
    slices_section,
)
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


def write_report(
    plan: StudyPlan, results: Results, folder: Path, renewed: Collection[str] | None = None
) -> Path:
    """Write `quality.json`, `.md`, `.html`, and in `quality/` pictures and each protocol's part; gives the HTML's path.

    Of protocols that are not in `renewed` (default: all are), or have no finished cell in `results`, stays what `quality/` has of
    them.
    """
    kept = folder / NAME
    kept.mkdir(parents=True, exist_ok=True)
    measured = load_measured(plan, results)
    parts: list[Part] = []
    stayed: set[str] = set()
    has_headline = False
    for one in measured:
        part = None
        if not one.records or (renewed is not None and one.protocol not in renewed):
            part = load_part(kept, one.protocol)
        if part is not None:
            stayed.add(one.protocol)
        elif one.records:
            for old in kept.glob(f"{one.protocol}-*.png"):
                old.unlink()
            leads = not has_headline and one.compared is not None and one.reference in one.records
            part = _part(one, results, kept, leads)
            part.save(kept)
        if part is not None:
            has_headline |= bool(part.summary)
            parts.append(part)
    lines = ",\n".join(json.dumps(entry, allow_nan=False) for part in parts for entry in part.entries)
    (folder / f"{NAME}.json").write_text(f"[\n{lines}\n]\n" if lines else "[]\n")
    there = {part.protocol: part for part in parts}
    aims = [(f"{part.protocol}: {aim}", what, word) for part in parts for aim, what, word in part.aims]
    body = [
        block
        for one in measured
        for block in _body(one.protocol, there.get(one.protocol), plan.protocols[one.protocol].about)
    ]
    summary = next((part.summary for part in parts if part.summary), [])
    opening = _opening(measured, there, stayed, plan)
    text = "\n\n".join([f"# {TITLE}", *summary, *opening, *_aims(aims), *body]) + "\n"
    (folder / f"{NAME}.md").write_text(text)
    page = folder / f"{NAME}.html"
    page.write_text(render_page(text, folder, TITLE))
    return page


def _body(protocol: str, part: Part | None, about: str) -> list[str]:
    """What stands of a protocol below the aims: `about` first, as the plan has it now."""
    heading, *rest = part.body if part else [f"## {protocol}", "No cell of this protocol is finished."]
    return [heading, *([about] if about else []), *rest]


def _part(one: Measured, results: Results, plots: Path, leads: bool) -> Part:
    """What is said of a protocol with finished cells; of the one that leads also what serving costs, and a summary."""
    body: list[str] = []
    summary: list[str] = []
    conditions: Conditions = {}
    if one.measure == "next_item":
        body += next_item_section(one, plots)
        aims = next_item_aims(one)
    else:
        conditions = condition_differences(one, results)
        aims = rows_aims(one, conditions)
        cost = cost_of(costed_cells(one), results) if leads else None
        body += _rows_heading(one)
        body += setup_section(one)
        body += models_section(one, plots)
        body += equal_cpu_section(one)
        body += ablations_section(one)
        if cost is not None:
            body += frontier_section(one, cost, plots)
        body += conditions_section(one, conditions)
        body += slices_section(one)
        body += curves_section(one, plots)
        if cost is not None:
            body += cost_section(one, cost)
            summary = summary_section(one, cost)
    return Part(
        protocol=one.protocol,
        cells=sorted(one.cells[name][seed].key for name, seeds in one.records.items() for seed in seeds),
        commits=dict(commits_of(one)),
        row=_protocol_row(one),
        entries=entries(one),
        missing=[*_without_predictions(one), *_unmeasured(one, conditions)],
        aims=aims,
        body=body,
        summary=summary,
    )


def _opening(
    measured: list[Measured], parts: Mapping[str, Part], stayed: Collection[str], plan: StudyPlan
) -> list[str]:
    """What was measured and how, and what is missing."""
    blocks = [
        "## What was measured, and how",
        (
            "Written by `make study`, which trains what is missing and then writes this; nothing here is typed by hand. "
            "A cell is one model on one protocol with one seed."
        ),
        table(
            ["protocol", "measure", "test rows", "test users", "clicked", "models", "cells done"],
            [parts[one.protocol].row if one.protocol in parts else _protocol_row(one) for one in measured],
        ),
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
        *_commits(list(parts.values())),
        *_kept([one for one in measured if one.protocol in stayed], parts),
    ]
    missing = [line for one in measured for line in _missing(one, parts.get(one.protocol))]
    if missing:
        return [*blocks, "**Planned and missing:**", bullets(missing)]
    return [*blocks, "All planned cells are finished."]


def _protocol_row(one: Measured) -> list[str]:
    planned = sum(len(seeds) for seeds in one.cells.values())
    done = sum(len(seeds) for seeds in one.records.values())
    test = thousands(len(one.rows)) if one.rows is not None else "-"
    users = thousands(len(set(one.compared.user.tolist()))) if one.compared else "-"
    share = number(float(one.compared.label.mean()), 3) if one.compared else "-"
    what = "labelled rows" if one.measure == "rows" else "next item"
    return [one.protocol, what, test, users, share, str(len(one.cells)), f"{done} of {planned}"]


def _commits(parts: Sequence[Part]) -> list[str]:
    commits = sum((Counter(part.commits) for part in parts), Counter[str]())
    counted = ", ".join(f"{name} ({count})" for name, count in sorted(commits.items()))
    unknown = sum(len(part.cells) for part in parts) - commits.total()
    rest = f", and {unknown} of which it was not kept" if unknown else ""
    return [f"Commits that the cells were trained on top of: {counted}{rest}."] if commits else []


def _kept(measured: list[Measured], parts: Mapping[str, Part]) -> list[str]:
    """Protocols that stand as they were written before, and what of their plan has changed since."""
    lines = []
    for one in measured:
        changed = parts[one.protocol].changed(one)
        lines.append(
            one.protocol
            + (f", of which {', '.join(changed)} would be trained otherwise now" if changed else "")
        )
    return ["Written before, and left as it was when the rest was written:", bullets(lines)] if lines else []


def _missing(one: Measured, part: Part | None) -> list[str]:
    """What the plan has by now and the part lacks, models that `_kept` says are planned otherwise aside; and what the part says of itself."""
    finished, changed, rest = (part.cells, part.changed(one), part.missing) if part else ((), (), [])
    seeds_of = {name: seeds for name, seeds in one.missing(finished).items() if name not in changed}
    return [
        *(
            f"{one.protocol}: {name}, seed{'s' if len(seeds) > 1 else ''} {seeds_text(seeds)}"
            for name, seeds in seeds_of.items()
        ),
        *rest,
    ]


def _without_predictions(one: Measured) -> list[str]:
    gone = one.without_predictions()
    return (
        [f"{one.protocol}: no predictions of {', '.join(gone)}, which are in no seed-average"] if gone else []
    )


def _unmeasured(one: Measured, conditions: Conditions) -> list[str]:
    """Conditions that a finished cell was to be measured under, and is not."""
    found = []
    for name, seeds in one.cells.items():
        if not any(cell.has_conditions and seed in one.records.get(name, {}) for seed, cell in seeds.items()):
            continue
        absent = [condition for condition in CONDITIONS if condition not in conditions.get(name, {})]
        if absent:
            found.append(f"{one.protocol}: {name} under {', '.join(absent)}")
    return found


def _aims(aims: list[tuple[str, str, str]]) -> list[str]:
    if not aims:
        return []
    return [
        "## Aims",
        (
            "Set before the study, which is free to miss them; those on DIN with the same teacher and `sequence-long` came with these "
            "models. Differences are paired and seed-averaged."
        ),
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
