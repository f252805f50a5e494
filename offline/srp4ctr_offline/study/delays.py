"""`python -m srp4ctr_offline.study.delays CONFIG`: AUC on test rows by how far users' states are behind.

Real histories in the order in which they happened: each test row is scored by the bundle's own graphs from the state that its
user would have when the row was shown. Either the state has all events before the row, or it lacks the latest 1, 4, 16 or
64 of them, or it is of the night before, without any event of the row's own day (UTC), where the tables have times. It is
one trained model throughout, and the same rows.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.metrics import Quality, evaluate_rows
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.columns import numbers_of
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.data.tables import read_table
from srp4ctr_offline.gate import sample_rows
from srp4ctr_offline.prepared import TEST, Ints, Prepared
from srp4ctr_offline.run import resolve, write_json
from srp4ctr_offline.served import predict_served
from srp4ctr_offline.source import EVENTS, ROWS, Source
from srp4ctr_offline.study.conditions import CONDITIONS
from srp4ctr_offline.timeline import Timeline

AT_ONCE, NIGHTLY = "0", "nightly"
BEHIND = tuple(one.missing_events for name, one in CONDITIONS.items() if name.startswith("missing_"))
"""Events, those of the study's conditions."""
TIMESTAMP = "timestamp"
"""The column of events and rows that has Unix seconds, where the configuration names none."""
DAY_S = 86_400
MAX_ROWS = 50_000


@dataclass(frozen=True, eq=False)
class Delays:
    """Quality by delay, all on the same rows; `events` is how many a history had on average.

    `no_nightly` says why there is no nightly one.
    """

    version: str
    name: str
    rows: int
    users: int
    quality: Mapping[str, Quality]
    events: Mapping[str, float]
    no_nightly: str | None

    def auc(self) -> dict[str, float | None]:
        """AUC by delay; null for the nightly one where the tables have no times."""
        found = {delay: quality.as_dict()["auc"] for delay, quality in self.quality.items()}
        return found | {NIGHTLY: None} if self.no_nightly else found

    def as_dict(self) -> dict[str, Any]:
        """All numbers, with bootstrap intervals, the differences' paired."""
        at_once = self.quality[AT_ONCE]
        return {
            "benchmark": "delays",
            "model": self.version,
            "data": self.name,
            "split": TEST,
            "rows": self.rows,
            "users": self.users,
            "auc_by_delay": self.auc(),
            "no_nightly": self.no_nightly,
            "delays": {
                delay: quality.as_dict()
                | {
                    "mean_history": round(self.events[delay], 1),
                    "minus_at_once": quality.difference(at_once),
                }
                for delay, quality in self.quality.items()
            },
        }

    def table(self) -> str:
        """AUC and what it loses, for people."""
        lines = [
            f"{self.version} on {self.rows:,} {TEST} rows of {self.users:,} users, by the events that a state lacks",
            f"{'lacks':>8} {'history':>8} {'AUC':>8} {'minus at once, 95 % interval':>32}",
        ]
        for delay, quality in self.quality.items():
            gap = quality.difference(self.quality[AT_ONCE])["auc"]
            low, high = gap["interval_95"]
            change = "" if delay == AT_ONCE else f"{gap['difference']:+.5f} [{low:+.5f}, {high:+.5f}]"
            lines.append(f"{delay:>8} {self.events[delay]:>8.1f} {quality.value[0]:>8.4f} {change:>32}")
        if self.no_nightly:
            lines.append(f"{NIGHTLY:>8} {self.no_nightly}")
        return "\n".join(lines)


def delays(
    bundle: Bundle, config: RunConfig, prepared: Prepared, threads: int = 1, max_rows: int = MAX_ROWS
) -> Delays:
    """The bundle on at most `max_rows` test rows of its run, all of a user's or none."""
    rows = sample_rows(prepared, max_rows)
    cut = prepared.rows.cut[rows]
    cuts = {AT_ONCE: cut, **{str(behind): np.maximum(cut - behind, 0) for behind in BEHIND}}
    no_nightly = None
    try:
        cuts[NIGHTLY] = nightly_cuts(config, prepared, rows)
    except DataError as error:
        no_nightly = str(error)
    label, user = prepared.rows.label[rows], prepared.rows.user[rows]
    quality = {
        delay: evaluate_rows(
            label, user, predict_served(bundle, _cut_at(prepared, rows, own), rows, threads, progress=True)
        )
        for delay, own in cuts.items()
    }
    events = {delay: float(prepared.lengths(own).mean()) for delay, own in cuts.items()}
    version = bundle.manifest.version
    return Delays(version, config.name, len(rows), len(np.unique(user)), quality, events, no_nightly)


def nightly_cuts(config: RunConfig, prepared: Prepared, rows: Ints) -> Ints:
    """Events [R] of each row's user before the row and before the first of the row's own day (UTC).

    Raises DataError where the tables do not have the times of the rows and of all their users' events.
    """
    column = config.features.timestamp or TIMESTAMP
    event_s, row_s = _times(config, prepared, column)
    row_s = row_s[rows]
    users, cut, start = prepared.rows.user[rows], prepared.rows.cut[rows], prepared.events.start
    theirs = np.isin(prepared.event_users(), users)
    if np.isnan(row_s).any() or np.isnan(event_s[theirs]).any():
        raise DataError(f"needs times, and the column {column!r} lacks some")
    day = row_s - row_s % DAY_S
    return np.array(
        [
            _first(event_s[begin : begin + end] >= midnight)
            for begin, end, midnight in zip(start[users].tolist(), cut.tolist(), day.tolist(), strict=True)
        ],
        np.int64,
    )


def _times(
    config: RunConfig, prepared: Prepared, column: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unix seconds of all events, in the order of the prepared ones, and of all rows; NaN where there is none."""
    tables, needed = config.tables, {column: "when it happened"}
    try:
        for file in (tables.events, tables.rows):
            read_table(tables.folder, file, needed)
    except DataError as error:
        raise DataError(f"needs times: {error}") from error
    features = config.features.model_copy(update={"timestamp": column})
    source = Source.read(config.model_copy(update={"features": features}))
    timeline = Timeline.of(source)
    if not np.array_equal(timeline.cut, prepared.rows.cut):
        raise DataError(f"{tables.folder} has other rows or events than were prepared")
    row_times = read_table(tables.folder, tables.rows, needed).select(column).collect()[column]
    return numbers_of(source.frames[EVENTS][column], EVENTS)[timeline.sorting], numbers_of(row_times, ROWS)


def _first(late: NDArray[np.bool_]) -> int:
    """The place of the first that is true; their number where none is."""
    return int(late.argmax()) if late.any() else len(late)


def _cut_at(prepared: Prepared, rows: Ints, cuts: Ints) -> Prepared:
    """The prepared data with those rows' histories ending elsewhere."""
    everyone = np.array(prepared.rows.cut)
    everyone[rows] = cuts
    return replace(prepared, rows=replace(prepared.rows, cut=everyone))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m srp4ctr_offline.study.delays",
        description="Reads a run's prepared/ and tables, and the bundle that it was exported as. Writes delays/metrics.json "
        "into the run: AUC on test rows by how many of a user's latest events the state lacks.",
    )
    parser.add_argument("config", type=Path, help="the run's TOML file, such as configs/movielens-100k.toml")
    parser.add_argument(
        "--run", type=Path, help="the run's folder (default: var/runs/<name in the configuration>)"
    )
    parser.add_argument("--version", help="a version below var/bundles (default: what the run exported last)")
    parser.add_argument("--threads", type=int, default=1, help="of the encoder (default: %(default)s)")
    parser.add_argument(
        "--max-rows",
        type=int,
        default=MAX_ROWS,
        help="test rows, of users drawn at random (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    config, folder = resolve(arguments)
    prepared = Prepared.load(folder / "prepared")
    bundle = find_bundle(arguments.version or exported(folder), read_settings(StoreSettings).bundles_dir)
    found = delays(bundle, config, prepared, arguments.threads, arguments.max_rows)
    write_json(folder / "delays" / "metrics.json", found.as_dict())
    print(found.table())
    print(json.dumps(found.as_dict()))
    return 0


def exported(folder: Path) -> str:
    """The version that a run exported last; raises DataError where it has not."""
    path = folder / "export" / "metrics.json"
    try:
        version: str = json.loads(path.read_bytes())["version"]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; run: srp4ctr export CONFIG, or name a --version") from error
    return version


if __name__ == "__main__":
    sys.exit(exit_code("delays", main))
