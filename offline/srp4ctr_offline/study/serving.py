"""The report's sections on what serving costs: the frontier of user states, and the cost table."""

from collections.abc import Mapping
from pathlib import Path

from srp4ctr_offline.study.compare import RIVAL, WHOLE, spread
from srp4ctr_offline.study.cost import CANDIDATES, TIMED_CANDIDATES, Cost
from srp4ctr_offline.study.markdown import NONE, image, number, percent, table, thousands, with_deviation
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.plan import Cell
from srp4ctr_offline.study.plots import Point, plot_frontier

COSTED = (WHOLE, RIVAL, "din-narrow")
FRONTIER = (
    "mean-pooling",
    "tokens-q4",
    "tokens-q8",
    "no-recent-events",
    "tokens-q32",
    "tokens-q64",
    "tokens-alone",
    "tokens-short",
    "tokens",
    "sequence-short",
    "sequence",
)
PAPER_PERCENT = {1: 182, 100: 21}
"""FLOPs per candidate over DIN + MMoE, the user computed once a request: CIKM 2024, arXiv 2407.19658."""


def costed_cells(measured: Measured) -> dict[str, Cell]:
    """The models that are to be costed together: those of the table and of the frontier that have a record."""
    names = dict.fromkeys((measured.reference, *COSTED, *FRONTIER))
    return {
        name: next(iter(measured.cells[name].values()))
        for name in names
        if name in measured.cells and name in measured.records
    }


def frontier_points(measured: Measured, cost: Cost) -> list[Point]:
    """The states of the frontier that have a record."""
    points = []
    for name in FRONTIER:
        records = measured.records.get(name)
        if not records:
            continue
        auc = spread(one["test"]["auc"] for one in records.values())
        cpu = cost["models"][name]["cpu_ms"]
        points.append(
            Point(
                name=name,
                state_bytes=next(iter(records.values()))["state_bytes"],
                auc=auc.mean,
                deviation=auc.deviation,
                cpu_ms={str(count): cpu[str(count)] for count in TIMED_CANDIDATES},
            )
        )
    return points


def frontier_section(measured: Measured, cost: Cost, plots: Path) -> list[str]:
    """Bytes a user, CPU of scoring and AUC of each state that there is."""
    planned = [name for name in FRONTIER if name in measured.cells]
    points = frontier_points(measured, cost)
    if len(planned) < 2 or not points:
        return []
    path = plots / f"{measured.protocol}-frontier.png"
    plot_frontier(points, path)
    rows = [
        [
            one.name,
            thousands(one.state_bytes),
            *(number(value, 2) for value in one.cpu_ms.values()),
            with_deviation(spread(r["test"]["auc"] for r in measured.records[one.name].values())),
            str(len(measured.records[one.name])),
        ]
        for one in points
    ]
    times = [f"ms, {count} candidates" for count in TIMED_CANDIDATES]
    blocks = [
        "### What a state costs and what it is worth",
        (
            "Bytes: a stored state with its header, the mean over all users. Milliseconds: CPU of the exported scorer, one "
            "thread, of a user with a history of full length. `tokens` and `tokens-alone` had `sequence` for a teacher, which takes "
            "training time and no byte, and longer pre-training; the other states of tokens had neither. `mean-pooling`, `tokens-q*`, "
            "`no-recent-events` (16 tokens) and `tokens-alone` (16) are tokens alone; `tokens-short` and `tokens` also keep recent "
            "events as codes."
        ),
        table(["model", "bytes a user", *times, "AUC, single seeds", "seeds"], rows),
        image(f"{plots.name}/{path.name}", f"{measured.protocol}: bytes a user against AUC"),
    ]
    blocks += _whole_window(measured)
    absent = [name for name in planned if name not in measured.records]
    if absent:
        blocks.append(f"Planned and not measured: {', '.join(absent)}.")
    return blocks


def _whole_window(measured: Measured) -> list[str]:
    """What the report owes where the recent events are all events: the tokens are then of little use."""
    first = next(iter(measured.cells[measured.reference].values())).config
    if first.model.recent_events < first.features.max_events:
        return []
    return [
        (
            f"`{measured.reference}` keeps {first.model.recent_events} recent events, which is all of the "
            f"{first.features.max_events} that a history of this protocol has. So its state lacks no event, and what tokens can "
            "hold of a history shows only in the states without recent events."
        )
    ]


def cost_section(measured: Measured, cost: Cost) -> list[str]:
    """Operations per candidate against DIN, CPU of scoring, bytes of a state."""
    models = {name: cost["models"][name] for name in (measured.reference, *COSTED) if name in cost["models"]}
    blocks = [
        f"## Cost of serving, {measured.protocol}",
        (
            f"Floating point operations counted node by node in the exported graphs, histories of {cost['events']} events. "
            "Encoded once a request: the history is encoded for the request and its cost shared by the candidates, which is "
            "the paper's accounting. From the cache: the state is there already, as we serve it; the encoder then runs once "
            f"an event or a publication instead. In percent, signed, against `{RIVAL}` at the same number of candidates. "
            f"Our scorer is exported folded (decision 0009); `{RIVAL}` as it is trained, so that what folding its tower "
            "would save is not taken off. "
            "The paper's figures are published ones (CIKM 2024, arXiv 2407.19658), of other data and another base model: "
            "they show the direction, and are no measurement of ours."
        ),
        _operations_table(models),
        (
            f"CPU of ONNX Runtime, one thread, milliseconds a request: the median of {cost['rounds']} rounds of "
            f"{cost['runs']} requests each, in which the models take turns. `{RIVAL}` keeps no state and reads the history "
            "in each request; of the others the scorer, and the encoder of one history by itself. Fetching, decoding and "
            "looking up are in none of them. Compare within this table only."
        ),
        _times_table(models),
    ]
    absent = [name for name in (measured.reference, *COSTED) if name in measured.cells and name not in models]
    if absent:
        blocks.append(f"Not measured, for want of a finished cell: {', '.join(absent)}.")
    return blocks


def _operations_table(models: Cost) -> str:
    rival = models.get(RIVAL)
    rows = []
    for count in CANDIDATES:
        for name, one in models.items():
            request, cached = per_candidate(one, count)
            against = rival["flops"][str(count)] / count if rival and name != RIVAL else None
            rows.append(
                [
                    name,
                    str(count),
                    thousands(request),
                    percent(request / against - 1) if against else NONE,
                    thousands(cached),
                    percent(cached / against - 1) if against and cached else NONE,
                ]
            )
    rows += [
        ["the paper, over DIN + MMoE (published)", str(count), NONE, f"{value:+} %", NONE, NONE]
        for count, value in PAPER_PERCENT.items()
    ]
    against_text = f"against {RIVAL}"
    return table(
        [
            "model",
            "candidates",
            "FLOPs a candidate, encoded once a request",
            against_text,
            "from the cache",
            against_text,
        ],
        rows,
    )


def _times_table(models: Cost) -> str:
    shown = ("encoder", *(str(count) for count in TIMED_CANDIDATES))
    rows = [
        [name, thousands(one["state_bytes"]), *(number(one["cpu_ms"].get(what), 2) for what in shown)]
        for name, one in models.items()
    ]
    candidates = (f"{count} candidates" for count in TIMED_CANDIDATES)
    return table(["model", "state bytes, full history", "encoder", *candidates], rows)


def per_candidate(cost: Mapping[str, Mapping[str, int]], candidates: int) -> tuple[float, float | None]:
    """Operations a candidate: with the user encoded once a request, and from the cache (None without a state)."""
    scorer, encoder = cost["flops"][str(candidates)], cost["encoder_flops"]
    if encoder is None:
        return scorer / candidates, None
    assert isinstance(encoder, int)
    return (encoder + scorer) / candidates, scorer / candidates
