"""Pictures of the comparison, as PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from srp4ctr_loadtest.peers.aims import OURS
from srp4ctr_loadtest.peers.baselines import BEFORE
from srp4ctr_loadtest.peers.results import Results, Row

COLOURS = ("tab:blue", "tab:orange", "tab:green")


def plot_cpu(results: Results, path: Path) -> None:
    """CPU milliseconds a request by server, one panel for each number of candidates."""
    _bars(results, path, "CPU, ms a request", lambda row: row.cpu_ms)


def plot_rates(results: Results, path: Path) -> None:
    """Requests a second of one core by server, one panel for each number of candidates."""
    _bars(results, path, "requests a second of one core", lambda row: row.rps)


def plot_latencies(results: Results, path: Path) -> None:
    """p50, p99 and p99.9 by server at the rate that all can take, one panel for each number of candidates."""

    def draw(axes: Axes, place: int, server: str, candidates: int) -> None:
        row = results.at_common(server, candidates)
        if row is None or row.p50_ms is None or row.p99_ms is None:
            return
        values = [row.p50_ms, row.p99_ms]
        if row.p999_ms is not None:
            values.append(row.p999_ms)
        axes.plot(values, [place] * len(values), color="lightgrey", zorder=1)
        for value, colour, name in zip(values, COLOURS, ("p50", "p99", "p99.9"), strict=False):
            axes.plot(value, place, "o", color=colour, label=name, zorder=2)

    counts = results.candidates()
    servers = [one for one in results.titles if any(results.at_common(one, count) for count in counts)]
    panels = _panels(results, servers, "ms, at one rate for all", draw)
    if not panels:
        return
    for axes in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    handles, names = panels[0].get_legend_handles_labels()
    panels[0].legend(handles[: len(COLOURS)], names[: len(COLOURS)], fontsize=8)
    _save(path)


def _bars(results: Results, path: Path, label: str, value_of: Callable[[Row], float | None]) -> None:
    def draw(axes: Axes, place: int, server: str, candidates: int) -> None:
        row = results.closed(server, candidates)
        value = None if row is None else value_of(row)
        if value is not None:
            bars = axes.barh(place, value, color=COLOURS[0] if server.startswith(OURS) else "lightgrey")
            shown = f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
            axes.bar_label(bars, [shown], padding=3, fontsize=8)

    # Beside what encodes the history for each candidate, all others would be of no length; the table has it.
    servers = [one for one in results.titles if one != BEFORE]
    if _panels(results, servers, label, draw):
        _save(path)


def _panels(
    results: Results, servers: Sequence[str], label: str, draw: Callable[[Axes, int, str, int], None]
) -> list[Axes]:
    """A panel for each number of candidates, a line in it for each server; none where nothing was measured."""
    candidates = results.candidates()
    if not candidates or not servers:
        return []
    size = (2.2 + 3.4 * len(candidates), 1.2 + 0.3 * len(servers))
    _, grid = plt.subplots(1, len(candidates), figsize=size, sharey=True, squeeze=False, layout="constrained")
    panels = list(grid[0])
    for axes, count in zip(panels, candidates, strict=True):
        for place, server in enumerate(servers):
            draw(axes, place, server, count)
        axes.margins(x=0.2)
        axes.set(xlabel=label, title=f"{count} candidates")
        axes.grid(visible=True, axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(servers)), [results.titles[server] for server in servers])
    panels[0].set_ylim(len(servers) - 0.5, -0.5)
    return panels


def _save(path: Path) -> None:
    plt.savefig(path, dpi=120)
    plt.close()
