"""What the study was to show, set before it began, and whether it does."""

from collections.abc import Mapping

import numpy as np

from srp4ctr.runtime.metrics import Quality, calibration_error_by_chance
from srp4ctr_offline.study.compare import ENOUGH_SEEDS, LONGER, RIVAL, TAUGHT, WHOLE, Difference
from srp4ctr_offline.study.equal_cpu import ENOUGH_MINUTES, averaged_rival, minutes_ratio
from srp4ctr_offline.study.markdown import difference_text, number, seed_count, seeds_text, table
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.production import (
    Conditions,
    Paired,
    gains_text,
    lift_kept,
    tail_sign,
    tail_slices,
)

OVER_DIN = 0.006
BELOW_SEQUENCE = 0.003
STATE_COST = {"state_float16": 0.0001, "state_int8": 0.0005}
ECE = 0.01
COLD_LIFT = 0.5
BEAUTY = {"S3-Rec's": (0.5506, 0.3732), "its authors' rerun of S3-Rec,": (0.5687, 0.3816)}
"""HR@10 and NDCG@10 against 99 uniform negatives: as published (Zhou et al., CIKM 2020), and as in the README of its code."""

UNKNOWN = "not measured"
TOKENS_ALONE = "no-recent-events"
Aim = tuple[str, str, str]
"""What was aimed at, what was measured, and the verdict: met, missed, open, a lead, not told apart, not measured."""


def rows_aims(measured: Measured, conditions: Conditions) -> list[Aim]:
    """Aims on one protocol of rows."""
    compared, reference = measured.compared, measured.reference
    if compared is None or reference not in compared.probabilities:
        return []
    found: list[Aim] = []
    if RIVAL in measured.cells:
        found += _over_rival(measured)
        found.append(_tail(measured))
    found += [_below_whole(measured, name) for name in (WHOLE, LONGER) if name in measured.cells]
    for name in (reference, TOKENS_ALONE):
        if any(cell.plan.conditions for cell in measured.cells.get(name, {}).values()):
            found += _state_costs(name, conditions.get(name, {}))
    found.append(_calibration(measured))
    if any(cell.plan.conditions for cell in measured.cells[reference].values()):
        found.append(_cold_lift(measured, conditions.get(reference, {})))
    return found


def _tail(measured: Measured) -> Aim:
    """As much over the rival on rare items as on common ones."""
    aim = f"over {RIVAL}, {measured.reference} gains on the rarer items that training has seen as much as on the most common"
    slices = tail_slices(measured)
    sign = tail_sign(slices)
    if sign is None:
        return aim, UNKNOWN, UNKNOWN
    assert measured.compared is not None
    few = len(measured.compared.seeds(measured.reference, RIVAL)) < ENOUGH_SEEDS
    word = _word(sign > 0, sign, few=few) if sign else "not told apart"
    return aim, gains_text(slices), word


def _below_whole(measured: Measured, name: str) -> Aim:
    assert measured.compared is not None
    one = measured.compared.difference(name)
    met = one is not None and _auc(one) >= -BELOW_SEQUENCE
    aim = f"AUC of {measured.reference} at most {number(BELOW_SEQUENCE, 3)} below {name}"
    return aim, _paired(one) + _on_validation(measured.valid_difference(name)), _word(met, one, few=_few(one))


def _state_costs(name: str, found: Mapping[str, tuple[Paired, Quality]]) -> list[Aim]:
    aims = []
    for state, limit in STATE_COST.items():
        change = found[state][0]["auc"]["difference"] if state in found else None
        text = UNKNOWN if change is None else f"{number(change, 6, '+')}, 1 seed"
        aim = f"{state.removeprefix('state_')} states of {name} cost at most {number(limit)} AUC"
        aims.append((aim, text, _word(change is not None and change >= -limit, change)))
    return aims


def _calibration(measured: Measured) -> Aim:
    assert measured.compared is not None
    ece = measured.compared.spread(measured.reference)["ece"].mean
    seeds = measured.compared.probabilities[measured.reference].values()
    chance = np.mean([calibration_error_by_chance(probability) for probability in seeds])
    aim = f"ECE of {measured.reference} at most {number(ECE, 2)}, mean of single seeds"
    text = f"{number(ece)}; perfect calibration would have {number(float(chance))} on these rows, by chance"
    return aim, text, _word(ece <= ECE, ece)


def _cold_lift(measured: Measured, found: Mapping[str, tuple[Paired, Quality]]) -> Aim:
    aim = f"candidates by attributes alone keep {100 * COLD_LIFT:.0f} % of {measured.reference}'s lift over item popularity"
    if "new_items" not in found:
        return aim, UNKNOWN, UNKNOWN
    kept = lift_kept(measured, measured.reference, found["new_items"][1])
    text = "no lift to keep" if kept is None else f"{100 * kept:,.0f} %, 1 seed"
    return aim, text, _word(kept is not None and kept >= COLD_LIFT, text)


def _over_rival(measured: Measured) -> list[Aim]:
    """Over one DIN, which more CPU does not improve, and over as many of it as the same CPU minutes pay for."""
    compared, reference = measured.compared, measured.reference
    assert compared is not None
    above = f"AUC of {reference} at least {number(OVER_DIN, 3)} above"
    valid = measured.valid_difference(RIVAL)
    found = [
        _over_one(measured, name, f"{above} one {RIVAL} {which}, the paired interval above 0")
        for name, which in ((RIVAL, "at its best"), (TAUGHT, "with the same teacher"))
        if name in measured.cells
    ]
    averaged = averaged_rival(measured)
    if averaged is not None:
        auc, met = averaged.paired["auc"], _is_over(averaged.paired)
        few = len(compared.seeds(reference)) < ENOUGH_SEEDS
        found.append(
            (
                f"{above} {RIVAL} given its CPU minutes: seeds {seeds_text(averaged.seeds)} averaged, {reference}'s single",
                difference_text(auc) + _of_minutes(RIVAL, averaged.ratio),
                _if_valid(
                    _at_equal_cpu(_word(met, averaged, few=few), met=met, ratio=averaged.ratio),
                    met=met,
                    valid=valid,
                ),
            )
        )
    return found


def _over_one(measured: Measured, name: str, aim: str) -> Aim:
    assert measured.compared is not None
    one, valid = measured.compared.difference(name), measured.valid_difference(name)
    met = one is not None and _is_over(one.paired)
    text = _paired(one) + _on_validation(valid) + _of_minutes(name, minutes_ratio(measured, name))
    return aim, text, _if_valid(_word(met, one, few=_few(one)), met=met, valid=valid)


def _is_over(paired: Paired) -> bool:
    difference, (low, _) = paired["auc"]["difference"], paired["auc"]["interval_95"]
    return difference is not None and low is not None and low > 0 and difference >= OVER_DIN


def _of_minutes(name: str, ratio: float | None) -> str:
    return "" if ratio is None else f"; {name} had {number(ratio, 2)} of the CPU minutes"


def _on_validation(difference: float | None) -> str:
    return "" if difference is None else f"; on validation rows {number(difference, 4, '+')}"


def _at_equal_cpu(word: str, *, met: bool, ratio: float) -> str:
    return f"open: {RIVAL} had too few CPU minutes" if met and ratio < ENOUGH_MINUTES else word


def _if_valid(word: str, *, met: bool, valid: float | None) -> str:
    return "open: not so on validation rows" if met and valid is not None and valid < 0 else word


def next_item_aims(measured: Measured) -> list[Aim]:
    """The aims on Amazon Beauty, by the model whose NDCG@10 on validation targets is the greatest, mean over seeds."""
    if "beauty" not in measured.protocol:
        return []
    aims = {
        f"HR@10 / NDCG@10 against 99 negatives above {whose} {number(hits)} / {number(gains)}": (hits, gains)
        for whose, (hits, gains) in BEAUTY.items()
    }
    if not measured.records:
        return [(aim, UNKNOWN, UNKNOWN) for aim in aims]

    def mean(name: str, split: str, figure: str) -> float:
        return float(np.mean([one[split][figure] for one in measured.records[name].values()]))

    best = max(measured.records, key=lambda name: mean(name, "valid", "ndcg10"))
    hits, gains = mean(best, "test", "hr10"), mean(best, "test", "ndcg10")
    return [
        (
            f"{best}: {aim}",
            f"{number(hits)} / {number(gains)}",
            _word(hits > theirs[0] and gains > theirs[1], hits),
        )
        for aim, theirs in aims.items()
    ]


def aims_table(aims: list[Aim]) -> str:
    """The aims as a table."""
    return table(["aim", "measured", "verdict"], aims)


def _auc(one: Difference) -> float:
    value = one.paired["auc"]["difference"]
    return float("nan") if value is None else float(value)


def _paired(one: Difference | None) -> str:
    if one is None:
        return UNKNOWN
    return f"{difference_text(one.paired['auc'])}, {seed_count(one.seeds)}"


def _few(one: Difference | None) -> bool:
    return one is not None and len(one.seeds) < ENOUGH_SEEDS


def _word(met: bool, measured: object, *, few: bool = False) -> str:
    if measured is None:
        return UNKNOWN
    if few:
        return f"{'a lead' if met else '**missed**'}, by few seeds"
    return "met" if met else "**missed**"
