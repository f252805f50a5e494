"""`srp4ctr doctor`: one screen that says what is installed, reachable and active, and what to do about the rest."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from srp4ctr.runtime.settings import read_settings
from srp4ctr_service import checks
from srp4ctr_service.checks import Finding
from srp4ctr_service.settings import Settings

DESCRIPTION = """\
Say what is installed, reachable and active, and what to do about what is not. Exit code 0 where everything that
serving needs is in order, else 1.

Reads the installed packages, Redis, the active version's bundle, var/data, var/runs and the service's /readyz. Starts
the local Redis where one has been used before and is not running; writes nothing else.
"""


def main(argv: Sequence[str]) -> int:
    """Print the findings; 0 where all that serving needs is in order, else 1."""
    parser = argparse.ArgumentParser(
        prog="srp4ctr doctor", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    settings = read_settings(Settings)
    findings = [
        checks.python(),
        *checks.packages(),
        checks.redis_binary(settings),
        *checks.store(settings),
        checks.service(settings),
        _folder("data", settings.var_dir / "data", "srp4ctr data movielens-100k"),
        _folder("runs", settings.runs_dir, "make demo"),
    ]
    print(report(findings))
    return 0 if all(finding.ok for finding in findings if finding.needed) else 1


def report(findings: Sequence[Finding]) -> str:
    """The screen: a line for each finding, and below it what to do where it is not in order."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok" if finding.ok else "NO" if finding.needed else "--"
        lines.append(f"{mark}  {finding.name:<{width}}  {finding.detail}")
        if not finding.ok:
            lines.append(f"    {'':<{width}}  to do: {finding.remedy}")
    wrong = [finding.name for finding in findings if finding.needed and not finding.ok]
    lines.append("")
    lines.append(f"not ready to serve: {', '.join(wrong)}" if wrong else "ready to serve")
    return "\n".join(lines)


def _folder(name: str, folder: Path, remedy: str) -> Finding:
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not inside:
        return Finding(name, f"nothing in {folder}", remedy=remedy, ok=False, needed=False)
    return Finding(name, f"{', '.join(inside)} in {folder}")
