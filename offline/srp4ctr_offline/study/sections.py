"""The report's sections on a protocol of labelled rows: models, ablations, curves, calibration."""

from collections.abc import Iterable
from pathlib import Path

from srp4ctr.runtime.metrics import METRICS, calibration_curve
from srp4ctr_offline.plots import plot_calibration
from srp4ctr_offline.study.compare import RIVAL, WHOLE, Compared, Difference, spread
from srp4ctr_offline.study.entries import cpu_minutes
from srp4ctr_offline.study.markdown import (
    best_epochs,
    difference_text,
    image,
    minutes_text,
    number,
    padding_text,
    seeds_text,
    table,
    with_deviation,
    with_interval,
)
from srp4ctr_offline.study.measured import Measured, Record
from srp4ctr_offline.study.plots import plot_differences, plot_training

ABLATIONS = {
    "no-pretraining": "fine-tuned from fresh weights, for longer and at a higher rate",
    "encoder-only": "pre-training teaches the encoder alone, not what reads it",
    "no-labels": "as encoder-only, and neither labels nor behaviours are predicted",
    "candidates-only": "held-out events are scored as candidates; nothing is hidden to be recovered",
    "no-item-attributes": "item ids and behaviour features",
    "no-behaviour-features": "item ids and attributes",
    "no-side-information": "neither item attributes nor behaviour features; user features remain",
    "ids-only-masking": "of what it hides, pre-training predicts item ids alone; held-out events are scored as candidates as ever",
    "mean-pooling-recent": "the mean of the history is the only token, beside the recent events",
    "no-recent-events": "candidates see the tokens alone",
    "mean-pooling": "no querying transformer: the mean of the history is the only token",
    "no-cross-attention": "candidates see the tokens' mean",
}
ABLATED = "tokens-short"
"""What ablations leave a part out of, where a protocol has it: pre-trained as long as they are, without a teacher."""
ABLATED_OF = dict.fromkeys(("mean-pooling", "no-cross-attention"), "no-recent-events")
"""Those that leave a part out of another model, which has lost one already."""
FLOOR_TO_BEAT = "item_mean_user_residual"


def models_section(measured: Measured, plots: Path) -> list[str]:
    """Every model: single seeds, seed-averaged, and paired with the reference."""
    return ["### Models", *_single_seeds(measured), *_seed_averaged(measured), *_paired(measured, plots)]


def _single_seeds(measured: Measured) -> list[str]:
    compared = _compared(measured)
    rows = []
    for name, records in measured.records.items():
        figures = compared.spread(name)
        minutes = spread(cpu_minutes(one) for one in records.values())
        rows.append(
            [
                name,
                f"{len(records)} of {len(measured.cells[name])}",
                with_deviation(measured.valid_auc(name)),
                *(with_deviation(figures[metric]) for metric in METRICS),
                minutes_text(minutes.mean),
                best_epochs(records.values()),
                padding_text(records.values()),
            ]
        )
    return [
        (
            "Single seeds on the test rows, mean ± standard deviation over seeds; this is what one trained model gives. "
            "Validation AUC: on the rows that everything was chosen on. "
            "Best epoch: the one that validation chose (mean over seeds), of those allowed; 0 is before fine-tuning. A best "
            "epoch that is the last allowed says that more training might still help. Padding: its share of the positions "
            "that pre-training encoded."
        ),
        table(
            [
                "model",
                "seeds",
                "validation AUC",
                "AUC",
                "GAUC",
                "logloss",
                "ECE",
                "CPU minutes",
                "best epoch",
                "padding",
            ],
            rows,
        ),
    ]


def _seed_averaged(measured: Measured) -> list[str]:
    compared = _compared(measured)
    rows = []
    for name in (*compared.probabilities, *compared.floors):
        quality = compared.quality(name)
        seeds = "none, a floor" if name in compared.floors else seeds_text(compared.seeds(name))
        intervals = zip(quality.value, quality.interval(), strict=True)
        rows.append([name, seeds, *(with_interval(*one) for one in intervals)])
    return [
        (
            "Seed-averaged: the mean of the seeds' probabilities with 95 % bootstrap intervals over users. It is an ensemble, "
            "which mostly ranks better than any of its seeds, and which nobody serves; the more seeds, the better."
        ),
        table(["model", "seeds", "AUC", "GAUC", "logloss", "ECE"], rows),
    ]


def _paired(measured: Measured, plots: Path) -> list[str]:
    reference = measured.reference
    differences = _compared(measured).differences()
    if not differences:
        return [f"`{reference}` has no finished cell here, so that nothing is paired."]
    blocks = [
        (
            f"`{reference}` minus each other, with 95 % intervals over the same draws of users. Single: of the means of all "
            "single seeds of each. Paired: of the seed-averaged predictions, over the seeds that both have; a floor, with all "
            "seeds. Intervals cover the choice of test users, and the seeds only as far as averaging does."
        ),
        differences_table(differences, reference),
    ]
    blocks += _otherwise_on_validation(measured, differences)
    # Floors are so far below that beside them the models could not be told apart.
    models = [one for one in differences if not one.floor]
    if models:
        path = plots / f"{measured.protocol}-differences.png"
        plot_differences(models, reference, path)
        blocks.append(
            image(f"{plots.name}/{path.name}", f"{measured.protocol}: AUC of {reference} minus each other")
        )
    return blocks


def _otherwise_on_validation(measured: Measured, differences: Iterable[Difference]) -> list[str]:
    """Models whose verdict the validation rows contradict: what differs in sign between two sets of rows is nothing to build on."""
    found = []
    for one in differences:
        word, valid = one.verdict().split()[0], measured.valid_difference(one.name)
        if valid is not None and {"better": valid < 0, "worse": valid > 0}.get(word, False):
            found.append(f"`{one.name}` ({number(valid, 4, '+')})")
    if not found:
        return []
    return [f"On the validation rows it is the other way round for {', '.join(found)}, by single seeds' AUC."]


def differences_table(differences: Iterable[Difference], reference: str, notes: bool = False) -> str:
    """Differences of AUC and GAUC, with the verdict on AUC."""
    rows = []
    for one in differences:
        paired = [
            difference_text(of)
            for of in (one.single["auc"], *(one.paired[metric] for metric in ("auc", "gauc", "logloss")))
        ]
        name = f"{one.name}: {ABLATIONS[one.name]}" if notes else one.name
        rows.append([name, seeds_text(one.seeds), *paired, one.verdict()])
    head = ["model", "shared seeds", "single AUC", "paired AUC", "paired GAUC", "paired logloss"]
    return table([*head, f"{reference}, by AUC, is"], rows)


def ablations_section(measured: Measured) -> list[str]:
    """The model that all parts are in, minus itself without one part each."""
    compared = _compared(measured)
    planned = [name for name in ABLATIONS if name in measured.cells]
    found = {name: one for name in planned if (one := compared.difference(name, ablated_of(measured, name)))}
    if not planned:
        return []
    blocks = ["### Ablations"]
    for whole in dict.fromkeys(ablated_of(measured, name) for name in found):
        rows = [one for name, one in found.items() if ablated_of(measured, name) == whole]
        blocks += [
            f"What each part is worth: `{whole}` minus the model without it.",
            differences_table(rows, whole, notes=True),
        ]
    absent = sorted(set(planned) - set(found))
    if absent:
        blocks.append(f"Planned and not measured: {', '.join(absent)}.")
    return blocks


def ablated_of(measured: Measured, name: str) -> str:
    """The model that an ablation leaves a part out of."""
    whole = ABLATED_OF.get(name, ABLATED)
    return whole if whole in measured.cells else measured.reference


def curves_section(measured: Measured, plots: Path) -> list[str]:
    """Validation AUC by epoch, and calibration on the test rows."""
    compared = _compared(measured)
    headline = [name for name in measured.records if name not in ABLATIONS and "-" not in name]
    curves = {name: [_epochs(record) for record in measured.records[name].values()] for name in headline}
    blocks = ["### Training and calibration"]
    if curves:
        path = plots / f"{measured.protocol}-training.png"
        plot_training(curves, "valid_auc", path, "validation AUC")
        blocks += [
            (
                "Validation AUC by epoch of training on clicks, a line a seed; epoch 0 is what pre-training has taught, and is "
                "left out where there was none."
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


def _epochs(record: Record) -> list[dict[str, float]]:
    """The record's epochs; without pre-training the one before the first is chance, and would flatten the picture."""
    history: list[dict[str, float]] = record["history"]["finetune"]
    return history if "pretrain" in record["history"] else history[1:]


def _calibrated(measured: Measured) -> tuple[str, ...]:
    return (measured.reference, WHOLE, RIVAL)


def _compared(measured: Measured) -> Compared:
    assert measured.compared is not None
    return measured.compared
