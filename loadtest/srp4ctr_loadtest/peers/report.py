"""The comparison as a page and as lines for a terminal; every number is the run's own."""

import json
from collections.abc import Sequence
from pathlib import Path

from srp4ctr_loadtest.peers.aims import ratios
from srp4ctr_loadtest.peers.baselines import BEFORE as BEFORE_NAME
from srp4ctr_loadtest.peers.catalogue import PEERS
from srp4ctr_loadtest.peers.plots import plot_cpu, plot_latencies, plot_rates
from srp4ctr_loadtest.peers.results import Results, Row

RESULTS = "serving.json"
ABOUT = "serving/about.json"
"""What the rows of `RESULTS` were measured on, and when."""

INTRODUCTION = """\
# Serving, beside what one would pick instead

Written by `make bench-peers`; do not edit. One model version, the same user states in one Redis and the same questions behind
each server, on one core with all its processes; the loader and Redis have another. Each server is written as its own
documentation would (`loadtest/srp4ctr_loadtest/peers/servers/`), with the settings that make it faster. Before any clock
started, its scores were equal to those of our service, to 1e-5; after each load, all was answered, and in full.

CPU is that of the server's whole tree of processes, Redis apart. CPU and requests a second: closed loops of 8 connections, the
best of 3 rounds. Latencies: three open loops (Poisson), from the time at which each request was due, at half of the server's own
maximum and at one rate that all can take, half of the slowest's maximum; of p50 and p99 the median of the three, p99.9 of all
three together where they had 5,000 requests. Nobody writes a log line for each request. Compare within one run only.

Which graph: rows named `plain graph` run the same weights as one exports them without us, `Srp4Ctr.score` of item codes with nothing
folded (`python -m srp4ctr_offline.study.plain_graph`); they are what one would have without our bundles. All other rows, ours among them, gather
item vectors from the bundle's table and run its `scorer.onnx`, one identical file: their ratios are of servers alone. All read
states by our library, which decodes a stored state and looks ids up in the item table; so does the floor.
"""

BEFORE = """\
The floor has no HTTP: orjson's parsing, a GET by redis-py's blocking client, the look-up of ids, one run, orjson's writing, one after the
other in one thread.

`before` is what user states save: the history is encoded anew for each candidate, with ONNX Runtime; neither a server nor JSON
nor Redis is in its figures.
"""


def write(results: Results, folder: Path) -> None:
    """Write `serving.json`, `serving.md`, what it ran on and the pictures of `serving/` into the folder."""
    pictures = folder / "serving"
    pictures.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(_json(results) + "\n")
    (folder / ABOUT).write_text(json.dumps(dict(results.about), indent=1) + "\n")
    plot_cpu(results, pictures / "cpu.png")
    plot_rates(results, pictures / "rates.png")
    plot_latencies(results, pictures / "latencies.png")
    (folder / "serving.md").write_text(page(results))


def page(results: Results) -> str:
    """The Markdown page."""
    about = [f"- {name}: {value}" for name, value in results.about.items()]
    parts = [
        INTRODUCTION,
        "\n".join([*about, *(f"- {note}" for note in results.notes)]),
        "![CPU a request](serving/cpu.png)\n![Requests a second](serving/rates.png)",
        *(_measured(results, candidates) for candidates in results.candidates()),
        BEFORE.rstrip("\n"),
        "![Latencies](serving/latencies.png)",
        _ratios(results),
        _errors(results),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def lines(results: Results) -> str:
    """For a terminal: the tables, and one line of JSON last."""
    tables = [_measured(results, candidates) for candidates in results.candidates()]
    line = {"benchmark": "serving", "model": results.about.get("model"), "rows": json.loads(_json(results))}
    return "\n\n".join(
        part for part in (*tables, _ratios(results), _errors(results), json.dumps(line)) if part
    )


def _json(results: Results) -> str:
    return "[\n" + ",\n".join(json.dumps(row.as_json()) for row in results.rows) + "\n]"


def _measured(results: Results, candidates: int) -> str:
    common = results.common_rps.get(candidates)
    at_common = "" if common is None else f" {common:.0f} req/s"
    table = [
        f"## {candidates} candidates",
        "",
        f"| server | CPU ms | req/s | at half: req/s | p50 ms | p99 | p99.9 | at{at_common}: p50 ms | p99 | p99.9 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for server, title in results.titles.items():
        closed = results.closed(server, candidates)
        half, shared = results.at_half(server, candidates), results.at_common(server, candidates)
        if closed is None:
            table.append(f"| {title} | | | | | | | | | |")
            continue
        cells = [
            _number(closed.cpu_ms, 2),
            _number(closed.rps, 0),
            _number(None if half is None else half.rate_rps, 0),
            *_latencies(half),
            *_latencies(shared),
        ]
        table.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(table)


def _latencies(row: Row | None) -> Sequence[str]:
    values = (None,) * 3 if row is None else (row.p50_ms, row.p99_ms, row.p999_ms)
    return [_number(value, 2) for value in values]


def _ratios(results: Results) -> str:
    found = ratios(results)
    if not found:
        return ""
    table = [
        "## Requests a second, ours over theirs",
        "",
        "| | their graph | candidates | states read from Redis | near cache | aim | met | CPU a request, theirs over ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        met = {None: "", True: "yes", False: "no"}[one.met]
        cells = [
            results.titles[one.peer],
            _graph(one.peer),
            str(one.candidates),
            f"{one.redis:.2f}",
            _number(one.near, 2),
            _number(one.aim, 1),
            met,
            f"{one.cpu:.2f}",
        ]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _graph(server: str) -> str:
    """What a server runs, beside our bundle's own graph."""
    if server == BEFORE_NAME:
        return "encoder and ours"
    return "plain" if any(peer.plain_graph for peer in PEERS if peer.name == server) else "ours"


def _errors(results: Results) -> str:
    errors = results.errors()
    if not errors:
        return ""
    items = [f"- {results.titles[server]}: {' '.join(error.split())}" for server, error in errors.items()]
    return "\n".join(["## What could not be measured", "", *items])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
