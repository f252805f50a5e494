"""What the study was to show, set before it began, and whether it does."""

from collections.abc import Mapping

from srp4ctr.runtime.metrics import Quality
from srp4ctr_offline.study.compare import ENOUGH_SEEDS, Difference
from srp4ctr_offline.study.equal_cpu import ENOUGH_MINUTES, RIVAL, averaged_rival, minutes_ratio
from srp4ctr_offline.study.markdown import number, seeds_text, table, with_interval
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.production import Paired, lift_kept

OVER_DIN = 0.006
BELOW_SEQUENCE = 0.003
STATE_COST = {"state_float16": 0.0001, "state_int8": 0.0005}
ECE = 0.01
COLD_LIFT = 0.5
BEAUTY = (0.5506, 0.3732)

UNKNOWN = "not measured"


def rows_aims(
    measured: Measured, conditions: Mapping[str, Mapping[str, tuple[Paired, Quality]]]
) -> list[tuple[str, str, str]]:
    """Aim, what was measured, and `met`, `missed` or `not measured`, of one protocol of rows."""
    compared, reference = measured.compared, measured.reference
    if compared is None or reference not in compared.probabilities:
        return []
    found = []
    if RIVAL in measured.cells:
        found += _over_rival(measured)
    if "sequence" in measured.cells:
        one = compared.difference("sequence")
        met = one is not None and _auc(one) >= -BELOW_SEQUENCE
        aim = f"AUC of {reference} at most {number(BELOW_SEQUENCE, 3)} below sequence"
        found.append((aim, _paired(one), _word(met, one, few=_few(one))))
    mine = conditions.get(reference, {})
    planned = any(cell.plan.conditions for cell in measured.cells[reference].values())
    for name, limit in STATE_COST.items() if planned else ():
        change = mine[name][0]["auc"]["difference"] if name in mine else None
        text = UNKNOWN if change is None else f"{number(change, 6, '+')}, 1 seed"
        aim = f"{name.removeprefix('state_')} states of {reference} cost at most {number(limit)} AUC"
        found.append((aim, text, _word(change is not None and change >= -limit, change)))
    ece = compared.spread(reference)["ece"]
    found.append(
        (
            f"ECE of {reference} at most {number(ECE, 2)}, mean of single seeds",
            number(ece.mean),
            _word(ece.mean <= ECE, ece),
        )
    )
    if planned:
        kept = lift_kept(measured, reference, mine["new_items"][1]) if "new_items" in mine else None
        met = kept is not None and kept >= COLD_LIFT
        text = "no lift to keep" if kept is None else f"{100 * kept:,.0f} %, 1 seed"
        if "new_items" not in mine:
            text = UNKNOWN
        aim = f"candidates by attributes alone keep {100 * COLD_LIFT:.0f} % of {reference}'s lift over item popularity"
        found.append((aim, text, _word(met, mine.get("new_items"))))
    return found


def _over_rival(measured: Measured) -> list[tuple[str, str, str]]:
    """Over one DIN, and over as many of it as the same CPU minutes pay for; no aim is met over one of fewer minutes."""
    compared, reference = measured.compared, measured.reference
    assert compared is not None
    above = f"AUC of {reference} at least {number(OVER_DIN, 3)} above {RIVAL}"
    one, ratio = compared.difference(RIVAL), minutes_ratio(measured, RIVAL)
    met = one is not None and _is_over(one.paired)
    found = [
        (
            f"{above} given its CPU minutes, the paired interval above 0",
            _paired(one) + _of_minutes(ratio),
            _at_equal_cpu(_word(met, one, few=_few(one)), met=met, ratio=ratio),
        )
    ]
    averaged = averaged_rival(measured)
    if averaged is not None:
        auc, met = averaged.paired["auc"], _is_over(averaged.paired)
        few = len(compared.seeds(reference)) < ENOUGH_SEEDS
        found.append(
            (
                f"{above}, its seeds {seeds_text(averaged.seeds)} averaged and {reference}'s single",
                with_interval(auc["difference"], auc["interval_95"], "+") + _of_minutes(averaged.ratio),
                _at_equal_cpu(_word(met, averaged, few=few), met=met, ratio=averaged.ratio),
            )
        )
    return found


def _is_over(paired: Paired) -> bool:
    difference, (low, _) = paired["auc"]["difference"], paired["auc"]["interval_95"]
    return difference is not None and low is not None and low > 0 and difference >= OVER_DIN


def _of_minutes(ratio: float | None) -> str:
    return "" if ratio is None else f"; {RIVAL} had {number(ratio, 2)} of the CPU minutes"


def _at_equal_cpu(word: str, *, met: bool, ratio: float | None) -> str:
    if not met or (ratio is not None and ratio >= ENOUGH_MINUTES):
        return word
    return f"open: {RIVAL} had too few CPU minutes"


def next_item_aims(measured: Measured) -> list[tuple[str, str, str]]:
    """The aim on Amazon Beauty, by the best mean over seeds among the models."""
    if "beauty" not in measured.protocol:
        return []
    aim = f"HR@10 / NDCG@10 against 99 negatives above S3-Rec's {number(BEAUTY[0])} / {number(BEAUTY[1])}"
    found = []
    for name, records in measured.records.items():
        tests = [one["test"] for one in records.values()]
        hits, gains = (sum(test[figure] for test in tests) / len(tests) for figure in ("hr10", "ndcg10"))
        met = hits > BEAUTY[0] and gains > BEAUTY[1]
        found.append((f"{name}: {aim}", f"{number(hits)} / {number(gains)}", _word(met, hits)))
    return found or [(aim, UNKNOWN, UNKNOWN)]


def aims_table(aims: list[tuple[str, str, str]]) -> str:
    """The aims as a table."""
    return table(["aim", "measured", "verdict"], aims)


def _auc(one: Difference) -> float:
    value = one.paired["auc"]["difference"]
    return float("nan") if value is None else float(value)


def _paired(one: Difference | None) -> str:
    if one is None:
        return UNKNOWN
    paired = one.paired["auc"]
    return f"{with_interval(paired['difference'], paired['interval_95'], '+')}, {len(one.seeds)} seed{'s' if len(one.seeds) > 1 else ''}"


def _few(one: Difference | None) -> bool:
    return one is not None and len(one.seeds) < ENOUGH_SEEDS


def _word(met: bool, measured: object, *, few: bool = False) -> str:
    if measured is None:
        return UNKNOWN
    return ("met" if met else "**missed**") + (", by few seeds" if few else "")
