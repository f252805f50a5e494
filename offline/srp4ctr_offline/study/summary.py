"""What the study says in short, and how its models were trained: all of it from plan and results."""

from srp4ctr.nn.baselines import BASELINES
from srp4ctr_offline.config import OptimizerConfig
from srp4ctr_offline.study.compare import ENOUGH_SEEDS, LONGER, RIVAL, TAUGHT, WHOLE, Difference
from srp4ctr_offline.study.cost import Cost
from srp4ctr_offline.study.equal_cpu import averaged_rival, minutes_ratio
from srp4ctr_offline.study.markdown import (
    NONE,
    bullets,
    difference_text,
    number,
    seed_count,
    seeds_text,
    table,
    thousands,
    with_deviation,
)
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.plan import Cell
from srp4ctr_offline.study.sections import ABLATED, ablated_of

FRESH, WITHOUT_LABELS = "no-pretraining", "no-labels"
ALONE = "tokens-alone"
PARTS = {
    "recent events beside the tokens": "no-recent-events",
    "tokens in place of the history's mean": "mean-pooling",
    "the same beside recent events": "mean-pooling-recent",
    "the candidate's attention to tokens": "no-cross-attention",
    "item attributes": "no-item-attributes",
    "attributes and behaviours among pre-training's targets": "ids-only-masking",
}
"""What the sentence on parts calls what a model lacks."""
SHOWN_CANDIDATES = "100"
SAME_TIME = 0.8
"""Part of another's CPU time from which on nothing is said to be saved: two timings may differ by as much."""


def summary_section(measured: Measured | None, cost: Cost | None) -> list[str]:
    """Sentences on the first protocol with a finished reference; what a sentence lacks is named instead."""
    if measured is None or cost is None:
        return []
    sentences = {
        f"`{measured.reference}` against `{RIVAL}`": _over_rival(measured),
        f"`{measured.reference}` against several `{RIVAL}`": _over_several(measured),
        f"`{measured.reference}` against `{TAUGHT}`": _over_taught(measured),
        f"`{ABLATED}`, which has no teacher, against `{RIVAL}`": _untaught(measured),
        f"`{measured.reference}` against `{WHOLE}`": _against_whole(measured, cost),
        f"`{ALONE}`, which keeps no recent events": _alone(measured),
        "what pre-training is worth": _pretraining(measured),
        "what the other parts are worth": _parts(measured),
    }
    lines = [sentence or f"Not measured: {what}." for what, sentence in sentences.items()]
    return [f"## In short, {measured.protocol}", bullets(lines)]


def _over_rival(measured: Measured) -> str | None:
    against = _against(measured, RIVAL)
    if against is None:
        return None
    one, ratio, auc = against
    return (
        f"`{measured.reference}` has a test AUC of {_auc(measured, measured.reference)} in single seeds, `{RIVAL}` {auc}; averaged over seeds "
        f"{seeds_text(one.seeds)} the difference is {difference_text(one.paired['auc'])}, for {number(1 / ratio, 1)} times the CPU minutes."
    )


def _over_several(measured: Measured) -> str | None:
    averaged = averaged_rival(measured)
    if averaged is None:
        return None
    return (
        f"For {number(averaged.ratio, 2)} of `{measured.reference}`'s CPU minutes one may have `{RIVAL}` {len(averaged.seeds)} times and average it: "
        f"single seeds of `{measured.reference}` are {difference_text(averaged.paired['auc'])} from that."
    )


def _against_whole(measured: Measured, cost: Cost) -> str | None:
    compared, reference, models = measured.compared, measured.reference, cost["models"]
    assert compared is not None
    one = compared.difference(WHOLE)
    if one is None or not {reference, WHOLE} <= set(models):
        return None
    bytes_ours, bytes_theirs = (_state_bytes(measured, name) for name in (reference, WHOLE))
    ours, theirs = (models[name]["cpu_ms"][SHOWN_CANDIDATES] for name in (reference, WHOLE))
    word = {"better": "above", "worse": "below"}.get(one.verdict().split()[0], "not told apart from")
    bought = [
        what
        for what, cheaper in (
            ("bytes", bytes_ours < bytes_theirs),
            ("CPU of scoring", ours < SAME_TIME * theirs),
        )
        if cheaper
    ]
    return (
        f"`{reference}` is {word} `{WHOLE}` ({difference_text(one.paired['auc'])}), with {thousands(bytes_ours)} bytes a user against "
        f"{thousands(bytes_theirs)} and {number(ours, 2)} ms of scorer CPU for {SHOWN_CANDIDATES} candidates against "
        f"{number(theirs, 2)}: what it saves is {' and '.join(bought) or 'nothing'}."
        + _against_longer(measured)
    )


def _against_longer(measured: Measured) -> str:
    """The same network as WHOLE, which is the teacher, at what it can do by itself."""
    against = _against(measured, LONGER)
    if against is None:
        return ""
    one, _, auc = against
    return (
        f" `{WHOLE}` trained for longer and shuffled, as `{LONGER}`, has {auc} ({number(measured.valid_auc(LONGER).mean)} on validation rows, before "
        f"{number(measured.valid_auc(WHOLE).mean)}): `{measured.reference}` is {_difference(one)} from that."
    )


def _pretraining(measured: Measured) -> str | None:
    fresh = _worth(measured, FRESH)
    if fresh is None:
        return None
    compared = measured.compared
    assert compared is not None
    alone = compared.difference(FRESH, WITHOUT_LABELS) if WITHOUT_LABELS in measured.cells else None
    rest = (
        f"; items and their attributes alone, neither labels nor behaviours among its targets, are worth {_difference(alone)} "
        "over none"
        if alone
        else "; without labels and behaviours among its targets it is not measured"
    )
    return f"Pre-training, which sees the training rows' labels as event labels, is worth an AUC of {fresh}{rest}."


def _over_taught(measured: Measured) -> str | None:
    against = _against(measured, TAUGHT)
    if against is None:
        return None
    one, ratio, auc = against
    return (
        f"With the same `{WHOLE}` for a teacher `{RIVAL}` has {auc}, for {number(ratio, 2)} of the CPU minutes: `{measured.reference}` is "
        f"{_difference(one)} from that."
    )


def _untaught(measured: Measured) -> str | None:
    """What is left of the lead where neither side has a teacher."""
    compared, ratio = measured.compared, minutes_ratio(measured, ABLATED)
    assert compared is not None
    one = compared.difference(RIVAL, ABLATED)
    if one is None or ratio is None:
        return None
    return (
        f"Without a teacher and pre-trained for less, for {number(ratio, 2)} of `{measured.reference}`'s CPU minutes, `{ABLATED}` has "
        f"{_auc(measured, ABLATED)}: {_difference(one)} from `{RIVAL}`, which has none either."
    )


def _alone(measured: Measured) -> str | None:
    compared = measured.compared
    assert compared is not None
    rival, whole = (compared.difference(name, ALONE) for name in (RIVAL, WHOLE))
    if rival is None or whole is None:
        return None
    return (
        f"Trained the same way without recent events, in {thousands(_state_bytes(measured, ALONE))} bytes a user, the tokens alone have "
        f"{_auc(measured, ALONE)}: {_difference(rival)} from `{RIVAL}`, {_difference(whole)} from `{WHOLE}`."
    )


def _parts(measured: Measured) -> str | None:
    found = {what: worth for what, name in PARTS.items() if (worth := _worth(measured, name))}
    if not found:
        return None
    return (
        "What parts are worth in AUC: " + ", ".join(f"{what} {worth}" for what, worth in found.items()) + "."
    )


def _against(measured: Measured, name: str) -> tuple[Difference, float, str] | None:
    """The reference minus a model, the model's part of its CPU minutes, the model's AUC; None where one of both is not measured."""
    assert measured.compared is not None
    one, ratio = measured.compared.difference(name), minutes_ratio(measured, name)
    return None if one is None or ratio is None else (one, ratio, _auc(measured, name))


def _auc(measured: Measured, name: str) -> str:
    assert measured.compared is not None
    return with_deviation(measured.compared.spread(name)["auc"])


def _worth(measured: Measured, name: str) -> str | None:
    """What a part is worth, by the model without it; None where either has no finished seed in common."""
    compared = measured.compared
    assert compared is not None
    one = compared.difference(name, ablated_of(measured, name))
    return None if one is None else _difference(one)


def _difference(one: Difference) -> str:
    word = one.verdict()
    few = (
        ", not told apart" if word.startswith("not") else ", a lead" if len(one.seeds) < ENOUGH_SEEDS else ""
    )
    return f"{difference_text(one.paired['auc'])} ({seed_count(one.seeds)}{few})"


def _state_bytes(measured: Measured, name: str) -> int:
    size: int = next(iter(measured.records[name].values()))["state_bytes"]
    return size


def setup_section(measured: Measured) -> list[str]:
    """How each model was trained, by its configuration."""
    rows = [_setup(next(iter(seeds.values()))) for seeds in measured.cells.values()]
    blocks = [
        "### Set-up",
        (
            "Training: epochs (of fine-tuning: at most), histories a batch, learning rate, and whether each epoch has a user's events in "
            "another order; rows: trained on one encoded history; encoder: its part of that rate. A search chose DIN's settings "
            "(din-search.md), ours were chosen on validation rows one by one (docs/log.md), the other models' are set by hand. DIN is without Dice and mini-batch aware regularisation, DIEN without "
            "its auxiliary loss."
        ),
        table(
            ["model", "network", "pre-training", "fine-tuning", "rows", "encoder", "state", "teacher"], rows
        ),
    ]
    supervised = [
        name
        for name, seeds in measured.cells.items()
        if (cell := next(iter(seeds.values()))).plan.kind not in BASELINES and _sees_labels(cell)
    ]
    if supervised:
        blocks.append(
            "Pre-training is supervised, too, where events have labels: those of the training rows are targets of events that "
            "are scored as candidates, and behaviours are, of those and of hidden ones, which may be what labels are made of (a "
            "rating of 4 or more). No "
            "baseline is trained so. That is so of: " + ", ".join(f"`{name}`" for name in supervised) + "."
        )
    return blocks


def pretraining_setup(measured: Measured) -> list[str]:
    """How models that are pre-trained alone were trained, by their configuration."""
    rows = []
    for seeds in measured.cells.values():
        cell = next(iter(seeds.values()))
        options = cell.config.pretrain
        masking = options.masking
        heads = f"{masking.attribute_matches} heads" if masking.attribute_matches else NONE
        rows.append([cell.model, _steps(options), masking.item_query, heads])
    return [
        "### Set-up",
        (
            "Pre-training: epochs, histories a batch, learning rate. Item query: what of the encoding is compared with items. Attribute "
            "matches: attention to the values that the history's events show."
        ),
        table(["model", "pre-training", "item query", "attribute matches"], rows),
    ]


def _sees_labels(cell: Cell) -> bool:
    masking = cell.config.pretrain.masking
    features = cell.config.features
    behaviours = bool(features.behaviour_features)
    as_candidates = masking.candidate_weight > 0 and (features.event_label is not None or behaviours)
    as_hidden = masking.behaviour_weight > 0 and masking.attributes and behaviours
    return cell.plan.pretrained and (as_candidates or as_hidden)


def _setup(cell: Cell) -> list[str]:
    config, ours = cell.config, cell.plan.kind not in BASELINES
    model, tuning = config.model, config.finetune
    state = NONE
    if ours and model.state == "sequence":
        state = f"{model.layers} layers"
    elif ours:
        tokens = model.query_tokens if model.query_layers else 1
        state = f"{tokens} token{'s' * (tokens > 1)}, {model.recent_events} events"
    return [
        cell.model,
        _network(cell),
        _steps(config.pretrain) if ours and cell.plan.pretrained else NONE,
        _steps(tuning),
        str(tuning.rows_per_history),
        number(tuning.encoder_rate, 1) if ours else NONE,
        state,
        f"{cell.teacher.model}, {number(tuning.teacher_weight, 1)}" if cell.teacher else NONE,
    ]


def _network(cell: Cell) -> str:
    sizes = cell.config.model if cell.plan.kind not in BASELINES else cell.plan.baseline
    tower = "-".join(map(str, sizes.tower))
    unit = (
        f", attention {'-'.join(map(str, cell.plan.baseline.attention))}" if cell.plan.kind == RIVAL else ""
    )
    return f"{sizes.width} wide{unit}, tower {tower}"


def _steps(options: OptimizerConfig) -> str:
    shuffled = ", shuffled" if options.shuffle_events else ""
    return f"{options.epochs} of {options.batch_size} at {options.learning_rate:g}{shuffled}"
