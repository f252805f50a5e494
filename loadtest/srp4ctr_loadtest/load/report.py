"""The load test as a page that needs nothing but itself, as JSON, and as pictures."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from srp4ctr_loadtest.load.plots import plot
from srp4ctr_loadtest.load.results import COLUMNS, TITLES, Results, compared

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } .answer { font-size: 1.3rem; border-left: 4px solid #1f77b4; padding-left: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } .failed { color: #b00; } dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
"""
LOOPS = """Closed loop: each of locust's users waits for the answer before asking again, and thinks in between, so that a slow
service is asked less: it shows what users see and that answers are right, and flatters latencies under overload. Open loop:
requests come at random times that were fixed before (a Poisson process), whether or not answers come, and a latency begins
when its request was due, so that a stall counts for all who would have come meanwhile. The saturation point is of the open
loop: the highest rate at which the p99 kept the budget, nothing failed and every answer was the model's; a rate that was not kept was
tried once more, and the rate that was found was asked for longer in the end."""


def write(results: Results, folder: Path) -> None:
    """Write `load.json`, `load.html` and the pictures of `load/` into the folder."""
    pictures = plot(results, folder / "load")
    (folder / "load.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    (folder / "load.html").write_text(page(results, folder / "load", pictures))


def page(results: Results, folder: Path, pictures: Mapping[str, str]) -> str:
    """The HTML page, with those pictures of the folder inside."""
    rows = results.rows()
    failures = results.failures()
    verdict = (
        f'<p class="failed">{sum(failures.values())} requests failed: the tables below say how.</p>'
        if failures
        else "<p>Every answer was checked: as many scores as candidates, each a probability, the request's own id, a "
        "version that has been active, and no state for users whom nobody knows; and some users' were compared with what each was "
        "answered alone before the load, as the table below counts. None was wrong.</p>"
    )
    parts = [
        "<h1>Load test</h1>",
        f'<p class="answer">{escape(results.answer())}</p>',
        verdict,
        _definitions(results.about),
        f"<p>{escape(LOOPS)}</p>",
        "<h2>Latencies and throughput</h2>",
        _table(
            ["", *TITLES, "server: cores", "MB"],
            [
                [title, *(found[name] for name in COLUMNS), *_server(found["server"])]
                for title, found in results.latencies()
            ],
        ),
        "<h2>How answers were scored</h2>",
        _table(
            ["", "user states", "tiers", "degraded by", "compared"],
            [
                [
                    title,
                    *(_counts(found[name]) for name in ("states", "tiers", "degraded")),
                    compared(found["alone"]),
                ]
                for title, found in rows
            ],
        ),
        "<h2>Errors</h2>",
        _errors(rows),
        *(
            f'<h2>{escape(about)}</h2><img alt="{escape(about)}" src="data:image/png;base64,{_base64(folder / name)}">'
            for name, about in pictures.items()
        ),
        *_search(results),
        "<h2>Settings</h2>",
        _definitions({k: str(v) for k, v in results.as_json()["settings"].items() if v not in (None, "")}),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Load test</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _search(results: Results) -> list[str]:
    if results.saturation is None:
        return []
    rows = [
        [
            f"{one.rate_rps:.1f}",
            one.seconds,
            one.answered_rps,
            one.p99_ms,
            one.late_p99_ms,
            one.loader_cpu,
            one.why or "kept",
        ]
        for one in results.saturation.steps
    ]
    titles = ["requests/s wanted", "for s", "answers/s", "p99 ms", "sent late, p99 ms", "loader: cores", ""]
    return ["<h2>The search for the saturation point, open loop</h2>", _table(titles, rows)]


def _errors(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    found = [[title, name, count] for title, row in rows for name, count in row["errors"].items()]
    return _table(["", "error", "requests"], found) if found else "<p>None.</p>"


def _server(found: Mapping[str, Any] | None) -> list[object]:
    return [None, None] if found is None else [found["cpu_cores_mean"], found["memory_mb_max"]]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _definitions(values: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items()) + "</dl>"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
