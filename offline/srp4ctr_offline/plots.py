"""Pictures of runs, as PNG files."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = 256


def save_picture(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file of at most COLOURS colours, a third of the bytes of all, and close it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    plt.close(figure)
    with Image.open(drawn) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, "PNG", optimize=True)


def plot_epochs(history: list[dict[str, float]], panels: list[list[str]], path: Path, title: str) -> None:
    """Values by epoch, those that can be compared in one panel; an epoch that lacks a value is left out."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    size = (3.4 * columns, 2.7 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, names in zip(grid.flat, panels, strict=False):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    save_picture(figure, path)


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
    save_picture(figure, path)
