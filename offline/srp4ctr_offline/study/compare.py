"""A protocol's models on the same test rows: seed by seed, seed-averaged, and paired with the reference.

Seed-averaged predictions are the mean of the seeds' probabilities. That is an ensemble: it ranks better than its seeds
do one by one, the more so the more there are, and nobody serves it. So they are paired on the seeds that both models
have, and the means of all single seeds of each, which no number of seeds favours, stand beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srp4ctr.runtime.metrics import METRICS, Floats, Labels, Quality, evaluate_rows
from srp4ctr_offline.prepared import Ints

RIVAL = "din"
"""The published model that the reference is compared with in all sections."""
TAUGHT = "din-taught"
"""The same with the reference's teacher."""
WHOLE, LONGER = "sequence", "sequence-long"
"""Models that candidates see the whole history of: the teacher, and the same network trained for longer."""
ENOUGH_SEEDS = 3
"""On each side; a difference of fewer is a lead and no claim."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1; None for one seed) of single seeds."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """One model minus another, by metric, paired: means of all single seeds of each, and seed-averaged over shared `seeds`."""

    name: str
    seeds: tuple[int, ...]
    single: dict[str, dict[str, Any]]
    paired: dict[str, dict[str, Any]]
    floor: bool = False

    def verdict(self, metric: str = "auc") -> str:
        """What the paired interval says of the one that the other is taken from."""
        sign = sign_of(self.paired[metric]["interval_95"])
        if sign is None:
            return "not defined on these rows"
        if not sign:
            return "not told apart"
        word = "better" if (sign > 0) == (metric in ("auc", "gauc")) else "worse"
        return (
            word if len(self.seeds) >= ENOUGH_SEEDS else f"{word} (a lead: fewer than {ENOUGH_SEEDS} seeds)"
        )


@dataclass(frozen=True, eq=False)
class Compared:
    """Predictions [R] of the same rows by model and seed, with what the records say of each seed."""

    reference: str
    label: Labels
    user: Ints | Any
    figures: Mapping[str, Mapping[int, Mapping[str, float]]]
    probabilities: Mapping[str, Mapping[int, Floats]]
    floors: Mapping[str, Floats]
    _known: dict[tuple[str, tuple[int, ...]], Quality] = field(default_factory=dict)

    def spread(self, name: str) -> dict[str, Spread]:
        """Single seeds' figures of a model by metric."""
        return {metric: spread([one[metric] for one in self.figures[name].values()]) for metric in METRICS}

    def seeds(self, *names: str) -> tuple[int, ...]:
        """The seeds that every one of the models has predictions of."""
        return tuple(sorted(set.intersection(*(set(self.probabilities.get(name, ())) for name in names))))

    def averaged(self, name: str, seeds: Iterable[int]) -> Floats:
        """Mean probabilities of a model's seeds, or a floor's only ones."""
        if name in self.floors:
            return self.floors[name]
        mean: Floats = np.mean([self.probabilities[name][seed] for seed in seeds], axis=0)
        return mean

    def quality(self, name: str, seeds: tuple[int, ...] | None = None) -> Quality:
        """Of the seed-averaged predictions: all seeds where none are named."""
        taken = () if name in self.floors else self.seeds(name) if seeds is None else seeds
        if (name, taken) not in self._known:
            self._known[name, taken] = evaluate_rows(self.label, self.user, self.averaged(name, taken))
        return self._known[name, taken]

    def single(self, name: str) -> Quality:
        """A model's single seeds: the mean of their metrics, draw by draw, to be paired with others; a floor as it is."""
        if name in self.floors:
            return self.quality(name)
        each = [self.quality(name, (seed,)) for seed in self.seeds(name)]
        value, draws = (np.mean([getattr(one, part) for one in each], axis=0) for part in ("value", "draws"))
        return Quality(value, draws)

    def difference(self, name: str, of: str | None = None) -> Difference | None:
        """`of`, or else the reference, minus this one on the seeds that both have; None where there are none."""
        first = of or self.reference
        floor = name in self.floors
        seeds = self.seeds(first) if floor else self.seeds(first, name)
        if not seeds or name == first:
            return None
        single = self.single(first).difference(self.single(name))
        paired = self.quality(first, seeds).difference(self.quality(name, seeds))
        return Difference(name, seeds, single, paired, floor)

    def differences(self) -> list[Difference]:
        """From all others that can be paired, floors last."""
        found = (self.difference(name) for name in (*self.probabilities, *self.floors))
        return [one for one in found if one is not None]


def sign_of(interval: Sequence[float | None]) -> int | None:
    """1 or -1 of an interval above or below 0, 0 of one that holds it; None where it is not defined."""
    low, high = interval
    if low is None or high is None:
        return None
    return int(low > 0) - int(high < 0)


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation of some seeds' values."""
    array = np.array(list(values), float)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)
