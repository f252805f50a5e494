"""Quality of predicted probabilities: AUC, GAUC, logloss, ECE, with bootstrap intervals over users.

AUC: chance that a clicked row is ranked above one that was not, ties counting half (Fawcett, 2006).
GAUC: the mean of users' own AUC weighted by their rows, over users with both labels (Zhu et al., 2017).
logloss: mean negative log-likelihood, probabilities clipped at 1e-7.
ECE: mean gap between prediction and click rate over 15 bins of equal width, weighted by rows (Guo et al., 2017).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = ("auc", "gauc", "logloss", "ece")
BINS = 15
CLIP = 1e-7
DRAWS = 200

Floats = NDArray[np.float64]
Labels = NDArray[np.int8]


def auc(label: Labels, probability: Floats, weight: Floats | None = None) -> float:
    """AUC of rows with weights; NaN where only one label has weight."""
    return _Ranking(label, probability).auc(np.ones(len(label)) if weight is None else weight)


class _Ranking:
    """Rows sorted once, for the AUC under many weightings."""

    def __init__(self, label: Labels, probability: Floats) -> None:
        self.order = np.argsort(probability, kind="stable")
        ranked = probability[self.order]
        self.ties = (
            np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.empty(0, int)
        )
        self.clicked = label[self.order] == 1

    def auc(self, weight: Floats) -> float:
        if not len(weight):
            return float("nan")
        ranked = weight[self.order]
        clicks = np.add.reduceat(np.where(self.clicked, ranked, 0.0), self.ties)
        others = np.add.reduceat(np.where(self.clicked, 0.0, ranked), self.ties)
        pairs = clicks.sum() * others.sum()
        below = np.cumsum(others) - others
        return float((clicks * (below + others / 2)).sum() / pairs) if pairs else float("nan")


@dataclass(frozen=True, eq=False)
class Quality:
    """The four metrics of one set of predictions, and the same under bootstrap draws of users."""

    value: Floats
    draws: Floats

    def interval(self) -> Floats:
        """95 % bootstrap interval [4, 2]."""
        return np.percentile(self.draws, [2.5, 97.5], axis=0).T

    def as_dict(self) -> dict[str, Any]:
        """Metrics by name, and `<name>_95` intervals; None for what these rows do not define."""
        interval = self.interval()
        result: dict[str, Any] = {name: _number(self.value[i]) for i, name in enumerate(METRICS)}
        return result | {f"{name}_95": [_number(x) for x in interval[i]] for i, name in enumerate(METRICS)}

    def difference(self, other: "Quality") -> dict[str, Any]:
        """This minus the other, paired: both must come from one `evaluate_rows` of the same rows and seed."""
        low, high = np.percentile(self.draws - other.draws, [2.5, 97.5], axis=0)
        return {
            name: {
                "difference": _number(self.value[i] - other.value[i]),
                "interval_95": [_number(low[i]), _number(high[i])],
            }
            for i, name in enumerate(METRICS)
        }


def evaluate_rows(
    label: Labels,
    user: NDArray[np.integer[Any]],
    probability: Floats,
    seed: int = 0,
    draws: int = DRAWS,
    among: NDArray[np.integer[Any]] | None = None,
) -> Quality:
    """All metrics, on the rows as they are and on `draws` bootstrap samples of users, all rows of a user together.

    Users are drawn from those of the rows, or from `among`, which has them all: parts of the rows whose draws are to be paired
    are given the users of the whole.
    """
    drawn = np.unique(user if among is None else among)
    place, users = np.searchsorted(drawn, user), len(drawn)
    ranking = _Ranking(label, probability)
    rows_of_user = np.bincount(place, minlength=users).astype(float)
    own = np.array(
        [_Ranking(label[at], probability[at]).auc(np.ones(len(at))) for at in _groups(place, users)]
    )
    loss = row_losses(label, probability)
    bin_of = _bins(probability)

    def under(times: Floats) -> list[float]:
        weight = times[place]
        if not weight.sum():
            return [float("nan")] * len(METRICS)
        rated = ~np.isnan(own)
        share = times[rated] * rows_of_user[rated]
        gauc = float((share * own[rated]).sum() / share.sum()) if share.sum() else float("nan")
        gap = _gap(label, probability, bin_of, weight)
        return [ranking.auc(weight), gauc, float((weight * loss).sum() / weight.sum()), gap]

    generator = np.random.default_rng(seed)
    samples = [
        under(np.bincount(generator.integers(users, size=users), minlength=users).astype(float))
        for _ in range(draws)
    ]
    return Quality(np.array(under(np.ones(users))), np.array(samples))


def row_losses(label: Labels, probability: Floats) -> Floats:
    """Negative log-likelihood of each row, whose mean is the logloss."""
    clipped = np.clip(probability, CLIP, 1 - CLIP)
    return -np.where(label == 1, np.log(clipped), np.log1p(-clipped))


def expected_calibration_error(label: Labels, probability: Floats) -> float:
    """ECE of rows that all weigh the same."""
    return _gap(label, probability, _bins(probability), np.ones(len(label)))


def calibration_error_by_chance(probability: Floats) -> float:
    """ECE that these probabilities have on average where they are right and rows independent: a bin's clicks vary about their mean.

    The mean absolute value of a normal variable of the bin's variance, which differs from the binomial's by little in bins of many
    rows.
    """
    variance = np.bincount(_bins(probability), probability * (1 - probability), BINS)
    return float(np.sqrt(2 / np.pi * variance).sum() / len(probability))


def calibration_curve(label: Labels, probability: Floats) -> Floats:
    """[bins, 3] of the bins with rows: mean prediction, click rate, rows."""
    bin_of = _bins(probability)
    rows = np.bincount(bin_of, minlength=BINS)
    kept = rows > 0
    predicted = np.bincount(bin_of, probability, BINS)[kept] / rows[kept]
    clicked = np.bincount(bin_of, label, BINS)[kept] / rows[kept]
    return np.stack([predicted, clicked, rows[kept].astype(float)], axis=1)


def _gap(label: Labels, probability: Floats, bin_of: NDArray[np.int64], weight: Floats) -> float:
    return float(np.abs(np.bincount(bin_of, weight * (probability - label), BINS)).sum() / weight.sum())


def _bins(probability: Floats) -> NDArray[np.int64]:
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _groups(place: NDArray[np.integer[Any]], groups: int) -> list[NDArray[np.int64]]:
    order = np.argsort(place, kind="stable")
    return np.split(order, np.cumsum(np.bincount(place, minlength=groups))[:-1])
