"""Pictures of runs, as PNG files."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

NOT_LOSSES = ("epoch", "padding_share", "valid_auc")


def plot_losses(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Losses by epoch; `total` and single ones, whatever the history holds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in history[-1]:
        if name not in NOT_LOSSES:
            rows = [row for row in history if name in row]
            axes.plot(
                [row["epoch"] for row in rows],
                [row[name] for row in rows],
                marker="o",
                markersize=3,
                label=name,
            )
    axes.set(title=title, xlabel="epoch", ylabel="loss (mean of the epoch)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_calibration(curves: dict[str, NDArray[Any]], path: Path, title: str) -> None:
    """Mean prediction against click rate; each curve is [bins, 3]: mean prediction, click rate, rows."""
    figure, axes = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="perfect")
    for name, curve in curves.items():
        axes.plot(curve[:, 0], curve[:, 1], label=name)
        axes.scatter(curve[:, 0], curve[:, 1], s=5 + 95 * curve[:, 2] / np.max(curve[:, 2]))
    axes.set(title=title, xlabel="predicted click probability", ylabel="click rate", xlim=(0, 1), ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
