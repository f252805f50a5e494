"""What was measured beside what is aimed at, as a table for people and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DIGITS = 4


@dataclass(frozen=True)
class Finding:
    """One number, and where there is one the aim that it should not exceed, or with `at_least` should reach."""

    name: str
    what: str
    value: float
    unit: str
    aim: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "value": round(self.value, DIGITS),
            "unit": self.unit,
            "aim": self.aim,
            "at_least": self.at_least,
            "met": self.met,
        }


@dataclass(frozen=True)
class Part:
    """What one measurement found: numbers with aims, a table of its own, and the same for programs."""

    findings: Sequence[Finding]
    table: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


def table(findings: Iterable[Finding]) -> str:
    """Markdown, a line each."""
    lines = ["| | measured | aim | |", "|---|---:|---:|---|"]
    for one in findings:
        aim = "" if one.aim is None else f"{'≥' if one.at_least else '≤'} {_number(one.aim)}"
        met = {None: "", True: "met", False: "**missed**"}[one.met]
        lines.append(f"| {one.what} | {_number(one.value)} {one.unit} | {aim} | {met} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
