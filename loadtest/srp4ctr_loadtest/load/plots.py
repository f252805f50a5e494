"""Pictures of a load test, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from srp4ctr_loadtest.load.results import Results

LINES = {"p50_ms": "tab:blue", "p95_ms": "tab:orange", "p99_ms": "tab:green"}
LEAST_S = 0.5
"""A last second that is shorter is not shown: what little is in it says nothing of the rate."""


def plot(results: Results, folder: Path) -> dict[str, str]:
    """Draw what there is into the folder: file names, each with what it shows."""
    content = results.as_json()
    folder.mkdir(parents=True, exist_ok=True)
    shown = {}
    parts = [
        (title, [row for row in found["over_time"] if found["seconds"] - row["at_s"] > LEAST_S])
        for title, found in results.rows()
    ]
    if parts:
        _over_time(parts).savefig(folder / "over-time.png", dpi=120)
        shown["over-time.png"] = "Latencies and answers by the second in which requests began or were due."
    if content["saturation"] is not None:
        _saturation(content["saturation"]).savefig(folder / "saturation.png", dpi=120)
        shown["saturation.png"] = (
            "p99 of each step of the search; open loop, from the time at which requests were due."
        )
    if content["server"] is not None and content["server"]["at_s"]:
        _server(content["server"]).savefig(folder / "server.png", dpi=120)
        shown["server.png"] = "What the service used of the machine."
    plt.close("all")
    return shown


def _over_time(parts: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    size = (1.2 + 4.2 * len(parts), 5.5)
    figure, grid = plt.subplots(
        2, len(parts), figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    for place, (title, rows) in enumerate(parts):
        latencies, counts = grid[0][place], grid[1][place]
        at = [row["at_s"] for row in rows]
        for name, colour in LINES.items():
            values = [float("nan") if row[name] is None else row[name] for row in rows]
            latencies.plot(at, values, color=colour, label=name.removesuffix("_ms"), marker=".")
        latencies.set_title(title, fontsize=9)
        latencies.set_yscale("log")
        _logarithmic(latencies.yaxis)
        counts.plot(at, [row["rps"] for row in rows], label="answers", marker=".")
        counts.plot(at, [row["failed"] for row in rows], color="tab:red", label="failures", marker=".")
        if any(row["users"] for row in rows):
            counts.plot(at, [row["users"] for row in rows], color="grey", label="users", linestyle="--")
        counts.set(xlabel="seconds")
    grid[0][0].set_ylabel("latency, ms")
    grid[1][0].set(ylabel="a second", ylim=(0, 1.1 * grid[1][0].dataLim.ymax + 1))
    _finish([axes for row in grid for axes in row], [grid[0][0], grid[1][0]])
    return figure


def _saturation(found: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for kept, colour, name in ((True, "tab:blue", "kept"), (False, "tab:red", "not kept")):
        steps = [one for one in found["steps"] if (not one["why"]) is kept and one["p99_ms"] is not None]
        if steps:
            rates, p99 = [one["rate_rps"] for one in steps], [one["p99_ms"] for one in steps]
            axes.plot(rates, p99, "o", color=colour, label=name)
    axes.axhline(found["budget_ms"], color="grey", linestyle="--", label=f"budget {found['budget_ms']:g} ms")
    if found["rps"] is not None:
        axes.axvline(found["rps"], color="tab:blue", linestyle=":", label=f"{found['rps']:.0f} requests/s")
    axes.set(xlabel="requests a second", ylabel="p99, ms", xscale="log", yscale="log")
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    _finish([axes], [axes])
    return figure


def _server(found: Mapping[str, Any]) -> Figure:
    figure, (cores, memory) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    cores.plot(found["at_s"], found["cpu_cores"])
    memory.plot(found["at_s"], found["memory_mb"], color="tab:orange")
    cores.set(ylabel="CPU, cores", ylim=(0, 1.1 * max(found["cpu_cores"]) + 0.05))
    memory.set(ylabel="resident memory, MB", xlabel="seconds", ylim=(0, 1.1 * max(found["memory_mb"])))
    for place, (name, (began, ended)) in enumerate(found["parts_s"].items()):
        for axes in (cores, memory):
            axes.axvspan(began, ended, alpha=0.08 + 0.08 * (place % 2), color="grey", linewidth=0)
        cores.text(began, 1.01, name, fontsize=7, transform=cores.get_xaxis_transform(), rotation=20)
    _finish([cores, memory], [])
    return figure


def _logarithmic(axis: Axis) -> None:
    """The axis, whose scale is logarithmic, with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _finish(panels: Sequence[Axes], with_legend: Sequence[Axes]) -> None:
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
    for axes in with_legend:
        axes.legend(fontsize=8)
