"""`srp4ctr replay`: recorded requests once more, from what was asked to the score: is what was served what torch computes?

Three columns of scores stand beside each other: what was served; what ONNX Runtime gives for the recorded state with codes
that are made anew of the request, by the bundle's transforms and item table; and what the torch model gives for the same.
Where two of them differ, the first of their inputs that differs is named. Prints a table for people, then one JSON line.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srp4ctr.contract.errors import BundleError, DataError, DependencyMissing, Srp4ctrError
from srp4ctr.contract.records import Record, read_records
from srp4ctr.runtime.bundle import Bundle, find_bundle, open_revision
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.replayed import Comparison, Finding, Gap, Replayer, Torch

TOLERANCE = 1e-5
"""Between two probabilities: rounding in float32, of processors and libraries that add in another order."""
SHOWN = 10
"""Records that differ, of those in the table."""


@dataclass(eq=False)
class Report:
    """What a replay has found so far."""

    tolerance: float
    records: int = 0
    scores: int = 0
    torch_scores: int = 0
    versions: list[str] = field(default_factory=list)
    served_onnx: Gap | None = None
    onnx_torch: Gap | None = None
    without_torch: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Records that there is nothing to compare with, by the reason."""
    differing: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, one: Comparison) -> None:
        """Count a record in."""
        self.records += 1
        self.scores += one.scores
        self.torch_scores += one.torch_scores
        self.served_onnx = _larger(self.served_onnx, one.served_onnx)
        self.onnx_torch = _larger(self.onnx_torch, one.onnx_torch)
        if one.finding is not None:
            self.differing += 1
            if len(self.findings) < SHOWN:
                self.findings.append(one.finding)

    def lines(self) -> list[str]:
        """The report as a table for people."""
        asked = f"{self.records:,} records, {self.scores:,} scores, of {', '.join(self.versions)}"
        said = [
            f"{asked}; tolerance {self.tolerance:g}",
            f"{'largest difference':<20} {'':>10}  {'candidate':<20} request",
        ]
        for name, gap in (("served and ONNX", self.served_onnx), ("ONNX and torch", self.onnx_torch)):
            if gap is not None:
                said.append(f"{name:<20} {gap.max_abs:>10.2e}  {gap.item_id:<20} {gap.request_id}")
        said += [f"{number:,} records left out: {why}" for why, number in self.left_out.items()]
        said += [f"torch left out for {version}: {why}" for version, why in self.without_torch.items()]
        if not self.differing:
            return [*said, "all codes are equal, and all scores within the tolerance"]
        said.append(f"{self.differing:,} records differ; the first {len(self.findings)}:")
        return said + [f"  {finding}" for finding in self.findings]

    def as_json(self) -> dict[str, Any]:
        """The same for programs, with the first finding."""
        return {
            "command": "replay",
            "records": self.records,
            "scores": self.scores,
            "torch_scores": self.torch_scores,
            "versions": self.versions,
            "tolerance": self.tolerance,
            "served_onnx": self.served_onnx and asdict(self.served_onnx),
            "onnx_torch": self.onnx_torch and asdict(self.onnx_torch),
            "without_torch": self.without_torch,
            "left_out": self.left_out,
            "differing": self.differing,
            "first": asdict(self.findings[0]) if self.findings else None,
        }


def _larger(one: Gap | None, other: Gap | None) -> Gap | None:
    if one is None or other is None:
        return one or other
    return other if other.max_abs > one.max_abs else one


def replay(
    records: Iterable[Record],
    bundles: Path,
    find_torch: Callable[[Bundle], Torch] | None,
    tolerance: float = TOLERANCE,
) -> Report:
    """Score all records once more, each by the bundle of its version; `find_torch` gives the torch model of a bundle.

    Raises BundleError where a version has no bundle, and DataError where there are no records. Those of a revision of its items that
    has been removed are left out. Where `find_torch` raises
    an error of ours, the version is compared without torch, and the report says why.
    """
    report = Report(tolerance)
    replayers: dict[tuple[str, str | None], Replayer] = {}
    gone: dict[tuple[str, str | None], str] = {}
    for record in records:
        name, revision = wanted = record.model_version, record.items_revision
        if wanted not in replayers and wanted not in gone:
            bundle = find_bundle(name, bundles)
            if revision is not None:
                try:
                    bundle = open_revision(bundle, revision)
                except BundleError as error:
                    gone[wanted] = str(error)
        if wanted in gone:
            report.left_out[gone[wanted]] += 1
            continue
        if wanted not in replayers:
            torch = None
            try:
                torch = None if find_torch is None else find_torch(bundle)
            except Srp4ctrError as error:
                report.without_torch[name] = str(error)
            replayers[wanted] = Replayer(bundle, torch)
            if name not in report.versions:
                report.versions.append(name)
        report.add(replayers[wanted].compare(record, tolerance))
    if not report.records:
        raise DataError("; ".join(report.left_out) or "there are no records")
    return report


def main(argv: Sequence[str]) -> int:
    """Run the job: 0 where codes are equal and scores within the tolerance, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="srp4ctr replay",
        description="Reads records of requests that a service wrote (SRP4CTR_RECORD_DIR), the bundles of their versions below "
        "SRP4CTR_VAR_DIR and, for the comparison with torch, the run's prepared/ and finetune/. Writes nothing but its "
        "report: the largest differences between served scores, ONNX Runtime and torch, and the first input that differs. "
        "Ends with 1 where a score differs by more than the tolerance, or a code at all.",
    )
    parser.add_argument("records", type=Path, nargs="+", help="files of records, or folders of them")
    parser.add_argument(
        "--run",
        type=Path,
        help="the run that the bundle was exported from (default: runs/<the bundle's name> below SRP4CTR_VAR_DIR, or var)",
    )
    parser.add_argument(
        "--torch",
        action=argparse.BooleanOptionalAction,
        help="compare with torch, and fail where its model is not there; by default that is said, and torch left out",
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="(default: %(default)g)")
    parser.add_argument("--only", metavar="VERSION", help="leave out records of other versions")
    arguments = parser.parse_args(argv)
    settings = read_settings(StoreSettings)

    def find_torch(bundle: Bundle) -> Torch:
        try:
            from srp4ctr_offline.reference import Reference
        except ModuleNotFoundError as error:
            raise DependencyMissing(str(error.name), "offline") from error
        manifest = bundle.manifest
        return Reference.of(manifest, arguments.run or settings.runs_dir / manifest.name)

    records = read_records(arguments.records)
    wanted = (one for one in records if arguments.only in (None, one.model_version))
    report = replay(
        wanted, settings.bundles_dir, None if arguments.torch is False else find_torch, arguments.tolerance
    )
    if arguments.torch and report.without_torch:
        raise DataError(next(iter(report.without_torch.values())))
    print("\n".join(report.lines()))
    print(json.dumps(report.as_json()))
    return 1 if report.differing else 0
