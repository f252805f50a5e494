"""What longer benchmarks have found before, which have commands of their own: shown with its date, never as of this run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srp4ctr_loadtest.bench.findings import Finding
from srp4ctr_loadtest.peers import baselines
from srp4ctr_loadtest.peers.aims import ratios
from srp4ctr_loadtest.peers.catalogue import PEERS
from srp4ctr_loadtest.peers.report import ABOUT, RESULTS
from srp4ctr_loadtest.peers.results import Results, Row

FOLDER = Path("docs/benchmarks")
AIM_FRESH_MS, AIM_PUBLISHED = 1000.0, 2000.0


@dataclass(frozen=True)
class Kept:
    """Findings of another run, by which command, and of which day and model."""

    command: str
    date: str
    model: str
    findings: Sequence[Finding]

    @property
    def title(self) -> str:
        """What they must never be shown without."""
        return f"Not of this run: measured on {self.date} by `{self.command}`, model {self.model}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "command": self.command,
            "date": self.date,
            "model": self.model,
            "findings": [one.as_json() for one in self.findings],
        }


def kept(folder: Path = FOLDER) -> list[Kept]:
    """What is there of the comparison with peers and of the freshness benchmark."""
    found = []
    if (folder / RESULTS).exists() and (folder / ABOUT).exists():
        found.append(_serving(folder))
    if (folder / "freshness.json").exists():
        found.append(_freshness(folder / "freshness.json"))
    return found


def _serving(folder: Path) -> Kept:
    rows = [Row(**row) for row in json.loads((folder / RESULTS).read_bytes())]
    about = json.loads((folder / ABOUT).read_bytes())
    # By their names those that are compared no more.
    titles = {row.server: row.server for row in rows}
    titles |= {peer.name: peer.title for peer in PEERS} | baselines.TITLES
    results = Results(rows, titles, {}, about)
    return Kept("make bench-peers", about["date"], about["model"], of_peers(results, "peers"))


def of_peers(results: Results, name: str) -> list[Finding]:
    """Requests a second of ours over theirs, all reading states from Redis; findings are named `name.PEER.CANDIDATES`."""
    return [
        Finding(
            f"{name}.{one.peer}.{one.candidates}",
            f"requests a second over those of {results.titles[one.peer]}, {one.candidates} candidates",
            one.redis,
            "x",
            one.aim,
            at_least=True,
        )
        for one in ratios(results)
    ]


def _freshness(path: Path) -> Kept:
    content = json.loads(path.read_bytes())
    findings = []
    if content["event_to_score_p99_ms"] is not None:
        what = f"event to score at {content['events_per_s']:.0f} events/s, p99"
        findings.append(Finding("fresh", what, content["event_to_score_p99_ms"], "ms", AIM_FRESH_MS))
    if content["publish_users_per_s"] is not None:
        published = content["publish_users_per_s"]
        what = "users published a second and core"
        findings.append(Finding("publish", what, published, "/s", AIM_PUBLISHED, at_least=True))
    return Kept("make bench-freshness", content["about"]["date"], content["about"]["model"], findings)
