"""The same comparison on slices of the test rows: by how often training saw the item, by how long the history is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srp4ctr.runtime.metrics import METRICS, Floats, auc, evaluate_rows
from srp4ctr_offline.prepared import TRAIN, Ints, Prepared
from srp4ctr_offline.study.compare import Compared

Bounds = tuple[int, int | None]
"""First and last count of a slice; None: any above."""

ITEM_BOUNDS: tuple[Bounds, ...] = ((0, 0), (1, 9), (10, 99), (100, 999), (1000, None))
USER_BOUNDS: tuple[Bounds, ...] = ((0, 0), (1, 9), (10, 49), (50, None))


@dataclass(frozen=True)
class Slice:
    """One slice: AUC by model (None where it has one label only), and the reference minus the rival, paired.

    `draws` [D] are that difference's under draws of all test users, the same in every slice.
    """

    name: str
    rows: int
    users: int
    auc: dict[str, float | None]
    difference: dict[str, Any] | None = None
    draws: Floats | None = None

    def gains_over(self, other: "Slice") -> dict[str, Any] | None:
        """How much more the reference is above the rival here than in the other, paired; None where one of both is not defined."""
        if self.difference is None or other.difference is None or self.draws is None or other.draws is None:
            return None
        ends = np.percentile(self.draws - other.draws, [2.5, 97.5])
        if not np.isfinite(ends).all():
            return None
        difference = self.difference["difference"] - other.difference["difference"]
        return {"difference": round(difference, 6), "interval_95": [round(float(end), 6) for end in ends]}


def item_counts(prepared: Prepared, rows: Ints) -> Ints:
    """Training rows [R] of each row's item."""
    table = prepared.rows
    seen = np.bincount(table.item[table.of(TRAIN)], minlength=len(prepared.items.prior))
    counts: Ints = seen[table.item[rows]]
    return counts


def history_lengths(prepared: Prepared, rows: Ints) -> Ints:
    """Events [R] that precede each row in its user's history, those beyond `max_events` included."""
    return np.asarray(prepared.rows.cut[rows])


def item_bounds(counts: Ints) -> tuple[Bounds, ...]:
    """Powers of ten where the data are large enough for them; else none, and quarters of the other rows."""
    if counts.max(initial=0) >= 1000:
        return ITEM_BOUNDS
    seen = counts[counts > 0]
    cuts = np.unique(np.quantile(seen, (0.25, 0.5, 0.75)).astype(int)) if len(seen) else np.empty(0, int)
    firsts = [1, *(int(cut) + 1 for cut in cuts)]
    lasts = [*(int(cut) for cut in cuts), None]
    return ((0, 0), *zip(firsts, lasts, strict=True))


def tail_bounds(counts: Ints) -> tuple[Bounds, ...]:
    """The rarer half of the slices of items that training has seen, as one, and the most common slice."""
    seen = item_bounds(counts)[1:]
    rare = seen[: len(seen) // 2]
    return ((rare[0][0], rare[-1][1]), seen[-1]) if rare else ()


def slice_name(bounds: Bounds) -> str:
    """`0`, `1-9`, `50+`."""
    first, last = bounds
    if last is None:
        return f"{first}+"
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def make_slices(
    compared: Compared, counts: Ints, bounds: Sequence[Bounds], names: Sequence[str], rival: str
) -> list[Slice]:
    """Slices that have rows; all networks by the seeds that reference and rival share, where they have those."""
    both = compared.seeds(compared.reference, rival) or compared.seeds(compared.reference)
    taken = {
        name: compared.averaged(name, both)
        for name in names
        if name in compared.floors or (both and set(both) <= set(compared.seeds(name)))
    }
    found = []
    for bound in bounds:
        first, last = bound
        at = np.flatnonzero((counts >= first) & ((counts <= last) if last is not None else True))
        if not len(at):
            continue
        label, user = compared.label[at], compared.user[at]
        difference, draws = None, None
        if compared.reference in taken and rival in taken:
            ours, theirs = (
                evaluate_rows(label, user, taken[name][at], among=compared.user)
                for name in (compared.reference, rival)
            )
            difference = ours.difference(theirs)["auc"]
            draws = (ours.draws - theirs.draws)[:, METRICS.index("auc")]
        found.append(
            Slice(
                name=slice_name(bound),
                rows=len(at),
                users=len(np.unique(user)),
                auc={name: _defined(auc(label, chances[at])) for name, chances in taken.items()},
                difference=difference,
                draws=draws,
            )
        )
    return found


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
