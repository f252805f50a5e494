"""The report's sections on a protocol of labelled rows: models, equal CPU, ablations, curves, calibration."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from srp4ctr_offline.metrics import METRICS, calibration_curve
from srp4ctr_offline.plots import plot_calibration
from srp4ctr_offline.study.compare import Compared, Difference, spread
from srp4ctr_offline.study.entries import cpu_minutes
from srp4ctr_offline.study.markdown import (
    NONE,
    image,
    minutes_text,
    number,
    seeds_text,
    table,
    with_deviation,
    with_interval,
)
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.plots import plot_differences, plot_training

ABLATIONS = {
    "no-pretraining": "fine-tuned from fresh weights",
    "encoder-only": "pre-training teaches the encoder alone, not what reads it",
    "no-side-information": "no item attributes and no behaviour features",
    "ids-only": "pre-training hides and predicts item ids alone",
    "mean-pooling": "no querying transformer: the mean of the history is the only token",
    "no-cross-attention": "candidates see the tokens' mean, and no recent events",
    "no-recent-events": "candidates see the tokens alone",
}
ABLATED = "tokens-short"
"""What ablations leave a part out of, where a protocol has it: pre-trained as long as they are, without a teacher."""
EQUAL_CPU = ("din", "din-budget")
FLOOR_TO_BEAT = "item_mean_user_residual"


def models_section(measured: Measured, plots: Path) -> list[str]:
    """Every model: single seeds, seed-averaged, and paired with the reference."""
    compared, reference = _compared(measured), measured.reference
    single = []
    for name, records in measured.records.items():
        figures = compared.spread(name)
        minutes = spread(cpu_minutes(one) for one in records.values())
        single.append(
            [
                name,
                f"{len(records)} of {len(measured.cells[name])}",
                *(with_deviation(figures[metric]) for metric in METRICS),
                minutes_text(minutes.mean),
                _best_epochs(measured, name),
            ]
        )
    averaged = []
    for name in (*compared.probabilities, *compared.floors):
        quality = compared.quality(name)
        seeds = "none, a floor" if name in compared.floors else seeds_text(compared.seeds(name))
        intervals = zip(quality.value, quality.interval(), strict=True)
        averaged.append([name, seeds, *(with_interval(*one) for one in intervals)])
    blocks = [
        "### Models",
        (
            "Single seeds on the test rows, mean ± standard deviation over seeds; this is what one trained model gives. "
            "Best epoch: the one that validation chose (mean over seeds), of those allowed; 0 is before fine-tuning."
        ),
        table(
            ["model", "seeds", "AUC", "GAUC", "logloss", "ECE", "CPU minutes", "best epoch"],
            single,
        ),
        (
            "Seed-averaged: the mean of the seeds' probabilities with 95 % bootstrap intervals over users. It is an ensemble, "
            "which mostly ranks better than any of its seeds, and which nobody serves; the more seeds, the better."
        ),
        table(["model", "seeds", "AUC", "GAUC", "logloss", "ECE"], averaged),
    ]
    differences = compared.differences()
    if differences:
        blocks += [
            (
                f"`{reference}` minus each other. Single: the difference of the means of single seeds. Paired: of the "
                "seed-averaged predictions, over the seeds that both have, with a 95 % interval over the same draws of "
                "users; a floor, with all seeds. The interval covers the choice of test users, and the seeds only as far as "
                "averaging does."
            ),
            differences_table(differences, reference),
        ]
        # Floors are so far below that beside them the models could not be told apart.
        models = [one for one in differences if not one.floor]
        if models:
            path = plots / f"{measured.protocol}-differences.png"
            plot_differences(models, reference, path)
            blocks.append(
                image(
                    f"{plots.name}/{path.name}", f"{measured.protocol}: AUC of {reference} minus each other"
                )
            )
    else:
        blocks.append(f"`{reference}` has no finished cell here, so that nothing is paired.")
    return blocks


def differences_table(differences: Iterable[Difference], reference: str, notes: bool = False) -> str:
    """Differences of AUC and GAUC, with the verdict on AUC."""
    rows = []
    for one in differences:
        paired = [
            with_interval(one.paired[metric]["difference"], one.paired[metric]["interval_95"], "+")
            for metric in ("auc", "gauc", "logloss")
        ]
        single = number(one.single["auc"], sign="+") if one.single else NONE
        name = f"{one.name}: {ABLATIONS[one.name]}" if notes else one.name
        rows.append([name, seeds_text(one.seeds), single, *paired, one.verdict()])
    head = ["model", "seeds", "single AUC", "paired AUC", "paired GAUC", "paired logloss"]
    return table([*head, f"{reference}, by AUC, is"], rows)


def equal_cpu_section(measured: Measured) -> list[str]:
    """The reference against DIN at its best, and against DIN with the same CPU minutes."""
    compared, reference = _compared(measured), measured.reference
    planned = [name for name in EQUAL_CPU if name in measured.cells]
    if not planned or reference not in measured.cells:
        return []
    rows = []
    for name in (reference, *planned):
        if name not in measured.records:
            rows.append([name, *[NONE] * 5, "not measured"])
            continue
        minutes, ours = (
            spread(cpu_minutes(one) for one in measured.records[of].values()).mean
            if of in measured.records
            else None
            for of in (name, reference)
        )
        difference = compared.difference(name)
        rows.append(
            [
                name,
                NONE if minutes is None else minutes_text(minutes),
                number(minutes / ours, 2) if minutes and ours else NONE,
                _best_epochs(measured, name),
                with_deviation(compared.spread(name)["auc"]),
                _paired_auc(difference),
                difference.verdict() if difference else NONE,
            ]
        )
    return [
        "### At equal CPU",
        (
            f"CPU minutes are those of all training that a model needs, `{reference}`'s pre-training included, on one "
            "thread. A best epoch below the allowed ones says that validation had stopped to improve."
            + (
                f" `din-budget` is to have the minutes of `{reference}`: the ratio says how nearly."
                if "din-budget" in planned
                else ""
            )
        ),
        table(
            [
                "model",
                "CPU minutes",
                f"of {reference}'s",
                "best epoch",
                "AUC, single seeds",
                f"{reference} minus this, paired AUC",
                f"{reference} is",
            ],
            rows,
        ),
    ]


def ablations_section(measured: Measured) -> list[str]:
    """The model that all parts are in, minus itself without one part each."""
    compared = _compared(measured)
    planned = [name for name in ABLATIONS if name in measured.cells]
    whole = ABLATED if ABLATED in measured.cells else measured.reference
    if not planned or whole not in measured.records:
        return []
    found = [one for name in planned if (one := compared.difference(name, whole))]
    blocks = ["### Ablations", f"What each part is worth: `{whole}` minus the model without it."]
    if found:
        blocks.append(differences_table(found, whole, notes=True))
    absent = sorted(set(planned) - {one.name for one in found})
    if absent:
        blocks.append(f"Planned and not measured: {', '.join(absent)}.")
    return blocks


def curves_section(measured: Measured, plots: Path) -> list[str]:
    """Validation AUC by epoch, and calibration on the test rows."""
    compared = _compared(measured)
    headline = [name for name in measured.records if name not in ABLATIONS and "-" not in name]
    curves = {
        name: [record["history"]["finetune"] for record in measured.records[name].values()]
        for name in headline
    }
    blocks = ["### Training and calibration"]
    if curves:
        path = plots / f"{measured.protocol}-training.png"
        plot_training(curves, "valid_auc", path, "validation AUC")
        blocks += [
            (
                "Validation AUC by epoch of training on clicks, a line a seed; epoch 0 is before it, which for a pre-trained "
                "model is what pre-training has taught."
            ),
            image(f"{plots.name}/{path.name}", f"{measured.protocol}: validation AUC by epoch"),
        ]
    shown = [name for name in headline if name in compared.probabilities and name in _calibrated(measured)]
    if shown:
        path = plots / f"{measured.protocol}-calibration.png"
        # One seed: averaging would blur what a served model's probabilities are.
        first = {name: compared.probabilities[name][compared.seeds(name)[0]] for name in shown}
        first[FLOOR_TO_BEAT] = compared.floors[FLOOR_TO_BEAT]
        plot_calibration(
            {name: calibration_curve(compared.label, chances) for name, chances in first.items()},
            path,
            f"{measured.protocol}: test rows, one seed each",
        )
        blocks += [
            "Calibration on the test rows, of the first seed each: single models, since those are served.",
            image(f"{plots.name}/{path.name}", f"{measured.protocol}: calibration"),
        ]
    return blocks


def _calibrated(measured: Measured) -> tuple[str, ...]:
    return (measured.reference, "sequence", "din")


def _paired_auc(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    return with_interval(difference.paired["auc"]["difference"], difference.paired["auc"]["interval_95"], "+")


def _best_epochs(measured: Measured, name: str) -> str:
    """The epoch of least validation loss, the mean over seeds, of those that ran."""
    histories = [record["history"]["finetune"] for record in measured.records[name].values()]
    best = [history[int(np.argmin([row["valid"] for row in history]))]["epoch"] for history in histories]
    allowed = max(int(history[-1]["epoch"]) for history in histories)
    return f"{np.mean(best):.1f} of {allowed}"


def _compared(measured: Measured) -> Compared:
    assert measured.compared is not None
    return measured.compared
