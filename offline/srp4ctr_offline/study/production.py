"""The report's sections on what production does to a model: state formats, stale states, cold and rare items and users."""

from typing import Any

from srp4ctr.runtime.metrics import Quality, evaluate_rows
from srp4ctr_offline.study.compare import RIVAL, WHOLE, sign_of
from srp4ctr_offline.study.conditions import CONDITIONS
from srp4ctr_offline.study.markdown import NONE, difference_text, number, seeds_text, table, thousands
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.results import Results
from srp4ctr_offline.study.slices import (
    USER_BOUNDS,
    Slice,
    history_lengths,
    item_bounds,
    item_counts,
    make_slices,
    tail_bounds,
)

SLICED = (WHOLE, RIVAL, "item_popularity", "item_mean_user_residual")
POPULARITY = "item_popularity"
UNORDERED = "ml-1m"
"""In the names of protocols whose training rows are in a random order."""

Paired = dict[str, dict[str, Any]]
Conditions = dict[str, dict[str, tuple[Paired, Quality]]]
"""By model and condition: the condition minus the same trained model as it is, paired, and the condition's quality."""


def condition_differences(measured: Measured, results: Results) -> Conditions:
    """What is there of the conditions that finished cells were to be measured under."""
    compared, prepared, rows = measured.compared, measured.prepared, measured.rows
    assert compared is not None
    assert prepared is not None
    assert rows is not None
    found: Conditions = {}
    for model, records in measured.records.items():
        for seed in records:
            if not measured.cells[model][seed].has_conditions:
                continue
            if seed not in compared.probabilities.get(model, {}):
                continue
            usual = compared.quality(model, (seed,))
            for condition in CONDITIONS:
                key = f"{measured.cells[model][seed].key}.{condition}"
                chances = results.predictions(key, prepared.rows.row_id[rows])
                if chances is not None:
                    quality = evaluate_rows(compared.label, compared.user, chances)
                    found.setdefault(model, {})[condition] = (quality.difference(usual), quality)
    return found


def conditions_section(measured: Measured, conditions: Conditions) -> list[str]:
    """Stored states, missing events, candidates by attributes alone, users without history."""
    planned = [
        name for name, seeds in measured.cells.items() if any(cell.plan.conditions for cell in seeds.values())
    ]
    if not planned:
        return []
    blocks = [
        "### Stored and stale states, cold candidates and users",
        (
            "One trained model (the first seed) under what production does to it, minus the same model as it was evaluated "
            "above, paired. `state_*`: a state's numbers (the tokens, or what each layer reads) cast to this type and back; "
            "recent events and user features are kept as integer codes, which no cast touches. `missing_n`: the state lacks "
            "the user's latest n events. `new_items`: every candidate scored by its attributes alone, as if training had not "
            "seen it. `no_history`: states without any event."
        ),
    ]
    if UNORDERED in measured.protocol:
        blocks.append(
            "A user's training rows are in a random order in this copy of the data, so that many of the latest n events are "
            "not the latest: what staleness costs is shown by a protocol whose rows are in the order of their times, as "
            "`ml-100k`."
        )
    for model, found in conditions.items():
        rows = [
            [
                name,
                number(float(quality.value[0])),
                *(difference_text(paired[metric], 5) for metric in ("auc", "gauc", "logloss")),
                number(float(quality.value[3])),
            ]
            for name, (paired, quality) in found.items()
        ]
        head = ["condition", "AUC", "AUC, change", "GAUC, change", "logloss, change", "ECE"]
        blocks += [f"`{model}`:", table(head, rows)]
        blocks += _cold_sentence(measured, model, found)
        unseen = [name for name in CONDITIONS if name not in found]
        if unseen:
            blocks.append(f"Planned and not measured of `{model}`: {', '.join(unseen)}.")
    absent = [name for name in planned if name not in conditions]
    if absent:
        blocks.append(f"Planned and not measured: {', '.join(absent)}.")
    return blocks


def lift_kept(measured: Measured, model: str, quality: Quality) -> float | None:
    """Part of a model's AUC above item popularity that is left under a condition; None where it has none above."""
    compared = measured.compared
    assert compared is not None
    seed = min(measured.records[model])
    prior = float(compared.quality(POPULARITY).value[0])
    lift = float(compared.quality(model, (seed,)).value[0]) - prior
    return (float(quality.value[0]) - prior) / lift if lift > 0 else None


def _cold_sentence(measured: Measured, model: str, found: dict[str, tuple[Paired, Quality]]) -> list[str]:
    sentences = []
    for condition, what in (
        ("new_items", "by their attributes alone, candidates"),
        ("no_history", "without history, users"),
    ):
        if condition in found:
            kept = lift_kept(measured, model, found[condition][1])
            if kept is not None:
                sentences.append(
                    f"{what[0].upper()}{what[1:]} keep {100 * kept:,.0f} % of the model's AUC above item popularity "
                    "(which knows each item's clicks)."
                )
    return [" ".join(sentences)] if sentences else []


def slices_section(measured: Measured) -> list[str]:
    """The reference, its rivals and the floors by item frequency and by history length."""
    compared, prepared, rows = measured.compared, measured.prepared, measured.rows
    assert compared is not None
    assert prepared is not None
    assert rows is not None
    if measured.reference not in compared.probabilities:
        return []
    names = (
        measured.reference,
        *(name for name in SLICED if name in compared.floors or name in compared.probabilities),
    )
    counts = item_counts(prepared, rows)
    by_item = make_slices(compared, counts, item_bounds(counts), names, RIVAL)
    lengths = history_lengths(prepared, rows)
    by_user = make_slices(compared, lengths, USER_BOUNDS, names, RIVAL)
    seeds = compared.seeds(measured.reference, RIVAL) or compared.seeds(measured.reference)
    blocks = [
        "### Rare items, short histories",
        (
            f"AUC within slices of the test rows, networks seed-averaged over seeds {seeds_text(seeds)}; `{measured.reference}` "
            f"minus `{RIVAL}` paired. A slice's AUC asks for the order within the slice alone, so that slices do not add up "
            "to the whole."
        ),
        "By the training rows of the item (0: new items):",
        _slices_table(by_item, "training rows", measured.reference),
    ]
    blocks += tail_sentence(tail_slices(measured))
    return [
        *blocks,
        "By the events of the user before the row (0: new users):",
        _slices_table(by_user, "events before", measured.reference),
    ]


def tail_slices(measured: Measured) -> list[Slice]:
    """Reference and rival on the rarer items that training has seen, and on the most common; empty without predictions."""
    compared, prepared, rows = measured.compared, measured.prepared, measured.rows
    if (
        compared is None
        or prepared is None
        or rows is None
        or measured.reference not in compared.probabilities
    ):
        return []
    counts = item_counts(prepared, rows)
    return make_slices(compared, counts, tail_bounds(counts), (measured.reference, RIVAL), RIVAL)


def _slices_table(slices: list[Slice], what: str, reference: str) -> str:
    names = list(slices[0].auc) if slices else []
    rows = [
        [
            one.name,
            thousands(one.rows),
            thousands(one.users),
            *(number(one.auc[name]) for name in names),
            NONE if one.difference is None else difference_text(one.difference),
        ]
        for one in slices
    ]
    return table([what, "rows", "users", *names, f"{reference} minus {RIVAL}"], rows)


def tail_sentence(slices: list[Slice]) -> list[str]:
    """Whether rare items gain more than common ones, of the two slices of `tail_slices`."""
    sign = tail_sign(slices)
    if sign is None:
        return []
    word = {1: "gain more than", -1: "gain less than", 0: "are not told apart from"}[sign]
    return [
        f"Over `{RIVAL}`, the rarer items that training has seen {word} the most common ({gains_text(slices)})."
    ]


def tail_gain(slices: list[Slice]) -> dict[str, Any] | None:
    """The gain on the rarer items minus that on the most common, with its interval; None where one is not defined."""
    return slices[0].gains_over(slices[1]) if len(slices) == 2 else None


def tail_sign(slices: list[Slice]) -> int | None:
    """1 where the rarer items gain more, -1 where less, 0 where that is not told apart; None where it is not defined."""
    more = tail_gain(slices)
    return None if more is None else sign_of(more["interval_95"])


def gains_text(slices: list[Slice]) -> str:
    """Each slice's difference, and that of both, with their intervals."""
    more = tail_gain(slices)
    parts = [(f"{one.name} training rows", one.difference) for one in slices] + [
        ("the former minus the latter", more)
    ]
    return "; ".join(f"{name}: {difference_text(gain)}" for name, gain in parts if gain is not None)
