"""Pictures of the study's report, as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from srp4ctr_offline.plots import save_picture
from srp4ctr_offline.study.compare import Difference

TICK_RATIO = 1.25


@dataclass(frozen=True)
class Point:
    """One state of the frontier: bytes a user, AUC with the seeds' deviation, CPU milliseconds by candidates."""

    name: str
    state_bytes: int
    auc: float
    deviation: float | None
    cpu_ms: Mapping[str, float]


def plot_differences(differences: Sequence[Difference], reference: str, path: Path) -> None:
    """AUC of the reference minus each other with its paired interval."""
    shown = [one for one in differences if None not in one.paired["auc"]["interval_95"]]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.32 * len(shown)), layout="constrained")
    for place, one in enumerate(reversed(shown)):
        middle = one.paired["auc"]["difference"]
        low, high = one.paired["auc"]["interval_95"]
        axes.plot([low, high], [place, place], color="tab:blue")
        axes.plot(middle, place, "o", color="tab:blue")
    axes.set_yticks(range(len(shown)), [one.name for one in reversed(shown)])
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlabel=f"AUC of {reference} minus this (right: {reference} is better)")
    axes.grid(visible=True, axis="x", alpha=0.3)
    save_picture(figure, path)


def plot_frontier(points: Sequence[Point], path: Path) -> None:
    """State bytes against AUC, the CPU of scoring written beside each point."""
    figure, axes = plt.subplots(figsize=(10, 5.6), layout="constrained")
    for number, one in enumerate(points):
        axes.errorbar(one.state_bytes, one.auc, yerr=one.deviation, fmt="o", capsize=3, color="tab:blue")
        cpu = " / ".join(f"{value:.2f}" for value in one.cpu_ms.values())
        # Those of about the same bytes stand over each other, and have their labels beside them; the others theirs above and below in
        # turn, so that neighbours do not cover each other.
        stacked = (
            sum(1 / TICK_RATIO < other.state_bytes / one.state_bytes < TICK_RATIO for other in points) > 1
        )
        axes.annotate(
            f"{one.name}\n{cpu} ms" if cpu else one.name,
            (one.state_bytes, one.auc),
            xytext=(9, -8) if stacked else (7, 9 if number % 2 else -22),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xscale("log")
    places: list[int] = []
    for place in sorted({one.state_bytes for one in points}):
        # Labels of neighbours would cover each other.
        if not places or place > TICK_RATIO * places[-1]:
            places.append(place)
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.2, y=0.25)
    counts = " / ".join(next((list(one.cpu_ms) for one in points if one.cpu_ms), []))
    title = f"beside each: scorer CPU a request of {counts} candidates" if counts else ""
    axes.set(xlabel="state, bytes a user", ylabel="test AUC, mean of seeds", title=title)
    axes.title.set_fontsize(9)
    axes.grid(visible=True, alpha=0.3)
    save_picture(figure, path)


def plot_training(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], value: str, path: Path, label: str
) -> None:
    """A value by epoch: a colour a model, a line a seed."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, (name, histories) in enumerate(curves.items()):
        for seed, history in enumerate(histories):
            points = [(row["epoch"], row[value]) for row in history if value in row]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=f"C{number % 10}",
                linestyle="--" if number >= 10 else "-",
                marker="o",
                markersize=3,
                linewidth=1,
                label=None if seed else name,
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    save_picture(figure, path)
