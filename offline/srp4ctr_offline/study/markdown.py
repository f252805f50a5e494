"""Markdown as the study's report is written in, and figures as it prints them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srp4ctr_offline.study.compare import Spread

NONE = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its first column is text, the others figures."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *(list(row) for row in rows)]
    assert all(len(line) == len(head) for line in lines), lines
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def image(path: str, title: str) -> str:
    """A picture with what it shows."""
    return f"![{title}]({path})"


def number(value: float | None, digits: int = 4, sign: str = "") -> str:
    """`.8145`, `+.0021`, `-` for none."""
    if value is None:
        return NONE
    rounded = round(value, digits) + 0.0  # No -0.
    text = f"{rounded:{sign}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(rounded) < 1 else text


def minutes_text(value: float) -> str:
    """`12.3`, `.62`."""
    return number(value, 1 if value >= 1 else 2)


def with_interval(
    value: float | None, interval: Sequence[float | None], sign: str = "", digits: int = 4
) -> str:
    """`.8145 [.7982, .8283]`."""
    low, high = (number(one, digits) for one in interval)
    return f"{number(value, digits, sign)} [{low}, {high}]"


def difference_text(of: Mapping[str, Any], digits: int = 4) -> str:
    """`+.0021 [.0017, .0025]`, of a `difference` and its `interval_95`."""
    return with_interval(of["difference"], of["interval_95"], "+", digits)


def with_deviation(of: Spread) -> str:
    """`.8145 ± .0011`; the mean alone of one seed."""
    return number(of.mean) if of.deviation is None else f"{number(of.mean)} ± {number(of.deviation)}"


def best_epochs(records: Iterable[Mapping[str, Any]]) -> str:
    """The epoch of least validation loss, the mean over records, of those allowed: `2.5 of 4`."""
    taken = list(records)
    histories = [record["history"]["finetune"] for record in taken]
    best = [history[int(np.argmin([row["valid"] for row in history]))]["epoch"] for history in histories]
    return f"{np.mean(best):.1f} of {max(int(record['epochs']) for record in taken)}"


def padding_text(records: Iterable[Mapping[str, Any]]) -> str:
    """Share of padding among the positions that pre-training encoded, its last epoch, the mean over records: `2 %`."""
    shares = [
        record["history"]["pretrain"][-1].get("padding_share")
        for record in records
        if record["history"].get("pretrain")
    ]
    known = [share for share in shares if share is not None]
    return f"{100 * np.mean(known):.1f} %" if known else NONE


def thousands(value: float | None) -> str:
    """`12,345`."""
    return NONE if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A signed percentage of a ratio less one."""
    return NONE if value is None else f"{100 * value:+,.0f} %"


def seed_count(seeds: Collection[int]) -> str:
    """`1 seed`, or `3 seeds`."""
    return f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"


def seeds_text(seeds: Iterable[int]) -> str:
    """`1-5`, or `1, 3`."""
    taken = sorted(seeds)
    if len(taken) > 2 and taken == list(range(taken[0], taken[-1] + 1)):
        return f"{taken[0]}-{taken[-1]}"
    return ", ".join(map(str, taken)) or "none"
