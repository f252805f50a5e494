"""What the report says of one protocol, kept beside it: a machine that has other cells renews its own part alone."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.study.entries import Entry
from srp4ctr_offline.study.measured import Measured


@dataclass(frozen=True)
class Part:
    """One protocol's numbers and text; pictures are the report's `<protocol>-*.png`."""

    protocol: str
    cells: list[str]
    """Keys of the finished cells, which change with their configuration."""
    commits: dict[str, int]
    """Commits that they were trained on top of, and how many on each."""
    row: list[str]
    """Of the table of protocols."""
    entries: list[Entry]
    missing: list[str]
    """Conditions and predictions that finished cells lack; which cells do, the plan says each time."""
    aims: list[tuple[str, str, str]]
    body: list[str]
    summary: list[str] = field(default_factory=list)
    """Of the headline protocol: what stands before all else."""

    def changed(self, measured: Measured) -> list[str]:
        """Models whose cells are planned otherwise by now."""
        kept = set(self.cells)
        return [
            name
            for name, seeds in measured.cells.items()
            if any(f"{self.protocol}.{name}.{seed}." in key for key in kept for seed in seeds)
            and not kept & {cell.key for cell in seeds.values()}
        ]

    def save(self, folder: Path) -> None:
        """Write `<protocol>.json`."""
        (folder / f"{self.protocol}.json").write_text(
            json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"
        )


def load_part(folder: Path, protocol: str) -> Part | None:
    """What was kept of the protocol; raises DataError where that is of another release."""
    path = folder / f"{protocol}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_bytes())
    if set(content) != {one.name for one in fields(Part)}:
        raise DataError(
            f"{path} is not what this release writes; remove it, and run the protocol's cells again"
        )
    content["aims"] = [tuple(aim) for aim in content["aims"]]
    return Part(**content)


def commits_of(measured: Measured) -> Counter[str]:
    """Commits that a protocol's cells were trained on top of."""
    return Counter(
        (record.get("git_commit") or "unknown")[:10]
        for seeds in measured.records.values()
        for record in seeds.values()
    )
