"""The report's section on a rival at the reference's CPU minutes: one of it, and as many of it as they pay for."""

import math
from dataclasses import dataclass

from srp4ctr.nn.baselines import BASELINES
from srp4ctr_offline.study.compare import RIVAL, spread
from srp4ctr_offline.study.entries import cpu_minutes
from srp4ctr_offline.study.markdown import (
    NONE,
    best_epochs,
    difference_text,
    minutes_text,
    number,
    seeds_text,
    table,
    with_deviation,
)
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.production import Paired

ENOUGH_MINUTES = 0.8
"""Of the reference's; against a rival of fewer nothing is won at equal CPU."""


@dataclass(frozen=True)
class Averaged:
    """A rival's mean probabilities over as many seeds as the reference's CPU minutes pay for, where there are so many.

    `paired` is the mean of the reference's single seeds minus that; `ratio` is of the reference's CPU minutes.
    """

    seeds: tuple[int, ...]
    minutes: float
    ratio: float
    auc: float
    paired: Paired


def mean_minutes(measured: Measured, name: str) -> float | None:
    """CPU minutes of all training that the model needs, the mean over its seeds; None without a record."""
    records = measured.records.get(name)
    return spread(cpu_minutes(one) for one in records.values()).mean if records else None


def minutes_ratio(measured: Measured, name: str) -> float | None:
    """A model's CPU minutes in those of the reference."""
    ours, theirs = mean_minutes(measured, measured.reference), mean_minutes(measured, name)
    return theirs / ours if ours and theirs else None


def averaged_rival(measured: Measured, name: str = RIVAL) -> Averaged | None:
    """The rival as an ensemble; None where one of it is all that there is, or all that can be paid."""
    compared, ratio, minutes = measured.compared, minutes_ratio(measured, name), mean_minutes(measured, name)
    if compared is None or not ratio or not minutes or not compared.seeds(measured.reference):
        return None
    # As many as it takes to spend them all: rounding favours the rival.
    seeds = compared.seeds(name)[: math.ceil(1 / ratio)]
    if len(seeds) < 2:
        return None
    quality = compared.quality(name, seeds)
    paired = compared.single(measured.reference).difference(quality)
    return Averaged(seeds, len(seeds) * minutes, len(seeds) * ratio, float(quality.value[0]), paired)


def equal_cpu_section(measured: Measured) -> list[str]:
    """The reference against DIN at its best, against the mean of several, and against the other published models."""
    reference = measured.reference
    if not {RIVAL, reference} <= measured.cells.keys():
        return []
    others = [
        name
        for name, cells in measured.cells.items()
        if name != RIVAL and next(iter(cells.values())).plan.kind in BASELINES
    ]
    rows = [_row(measured, name) for name in (reference, RIVAL)]
    averaged = averaged_rival(measured)
    if averaged is not None:
        rows.append(
            [
                f"{RIVAL}, mean of seeds {seeds_text(averaged.seeds)}",
                minutes_text(averaged.minutes),
                number(averaged.ratio, 2),
                NONE,
                number(averaged.auc),
                difference_text(averaged.paired["auc"]),
                NONE,
            ]
        )
    rows += [_row(measured, name) for name in others]
    blocks = [
        "### At equal CPU",
        (
            f"CPU minutes are those of all training that a model needs, `{reference}`'s pre-training and teacher included, "
            "on one thread. A best epoch below the allowed ones says that validation had stopped to improve: then more "
            "minutes of the same bring nothing, and what they buy is several models. Against a mean of seeds stands the "
            f"mean of `{reference}`'s single seeds."
        ),
        table(
            [
                "model",
                "CPU minutes",
                f"of {reference}'s",
                "best epoch",
                "AUC",
                f"{reference} minus this, paired AUC",
                f"{reference} is",
            ],
            rows,
        ),
    ]
    ratio = minutes_ratio(measured, RIVAL)
    if ratio is not None and ratio < ENOUGH_MINUTES:
        blocks.append(
            f"One `{RIVAL}` takes {number(ratio, 2)} of `{reference}`'s minutes, below {number(ENOUGH_MINUTES, 1)}, and so is no "
            "comparison at equal CPU."
        )
    return blocks


def _row(measured: Measured, name: str) -> list[str]:
    if name not in measured.records:
        return [name, *[NONE] * 5, "not measured"]
    compared, minutes, ratio = measured.compared, mean_minutes(measured, name), minutes_ratio(measured, name)
    assert compared is not None
    difference = compared.difference(name)
    return [
        name,
        NONE if minutes is None else minutes_text(minutes),
        number(ratio, 2),
        best_epochs(measured.records[name].values()),
        with_deviation(compared.spread(name)["auc"]),
        difference_text(difference.paired["auc"]) if difference else NONE,
        difference.verdict() if difference else NONE,
    ]
