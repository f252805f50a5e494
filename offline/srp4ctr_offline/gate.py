"""The quality gate of `srp4ctr activate`: a new version beside the active one, on the same test rows, both as they serve.

Each bundle reads the rows by its own transforms and predicts by its own graphs, so that versions of other vocabularies, and
of other features, can be compared.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srp4ctr.contract.errors import BundleError, ConfigError, DataError, GateFailed
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.metrics import METRICS, Quality, evaluate_rows
from srp4ctr_offline.config import GateConfig, RunConfig
from srp4ctr_offline.prepare import prepare_for
from srp4ctr_offline.prepared import TEST, Ints, Prepared
from srp4ctr_offline.run import config_of_run, start_stage, write_json
from srp4ctr_offline.served import predict_served

SEED = 0
"""Of the order in which users are drawn: always the same ones for the same data."""


@dataclass(frozen=True)
class Check:
    """One limit of `[gate]`, and the value that may not be more: how much worse the new version is, or its own ECE.

    A metric that is not defined on the rows is NaN, and does not pass.
    """

    limit: str
    allowed: float
    metric: str
    active: float
    new: float
    value: float

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.value <= self.allowed

    def __str__(self) -> str:
        """What is wrong, where it does not hold."""
        metric = _title(self.metric)
        if math.isnan(self.value):
            return f"{metric} is not defined, since all rows have one label ({self.limit} = {self.allowed:g})"
        change = {"drop": "falls by", "rise": "rises by"}.get(self.limit.rpartition("_")[2], "is")
        return f"{metric} {change} {self.value:.5f} ({self.limit} = {self.allowed:g})"


@dataclass(frozen=True, eq=False)
class Comparison:
    """A new version and the active one on the same test rows."""

    new: str
    active: str
    rows: int
    users: int
    new_quality: Quality
    active_quality: Quality
    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        """The limits that do not hold."""
        return [check for check in self.checks if not check.passed]

    def as_dict(self) -> dict[str, Any]:
        """All numbers, with bootstrap intervals, the differences' paired."""
        return {
            "version": self.new,
            "active": self.active,
            "split": TEST,
            "rows": self.rows,
            "users": self.users,
            "passed": not self.failed,
            "checks": [
                {
                    "limit": check.limit,
                    "allowed": check.allowed,
                    "value": None if math.isnan(check.value) else round(check.value, 6),
                    "passed": check.passed,
                }
                for check in self.checks
            ],
            "metrics": {"new": self.new_quality.as_dict(), "active": self.active_quality.as_dict()},
            "new_minus_active": self.new_quality.difference(self.active_quality),
        }

    def table(self) -> str:
        """The limits as a table for people."""
        lines = [
            f"{self.new} beside the active {self.active}, on {self.rows:,} {TEST} rows of {self.users:,} users",
            f"{'':<10}{'active':>8}{'new':>8}{'new - active':>14}   limit",
        ]
        for check in self.checks:
            numbers = f"{check.active:>8.4f}{check.new:>8.4f}{check.new - check.active:>+14.5f}"
            verdict = "ok" if check.passed else "NOT ok"
            limit = f"{check.limit} = {check.allowed:g}"
            lines.append(f"{_title(check.metric):<10}{numbers}   {limit:<26}{verdict}")
        return "\n".join(lines)


def pass_gate(new: Bundle, active: str, bundles: Path, folder: Path, threads: int = 1) -> None:
    """Compare a bundle with the active version; prints the table, and writes activate/metrics.json into the run's folder.

    Raises GateFailed where a limit of `[gate]` does not hold: of the configuration that the run was last exported with.
    Raises BundleError, ConfigError or DataError where the two cannot be compared.
    """
    began = time.monotonic()
    version = new.manifest.version
    try:
        config = config_of_run(folder, "export")
        comparison = compare(new, find_bundle(active, bundles), config, folder, threads)
    except (BundleError, ConfigError, DataError) as error:
        raise type(error)(
            f"{version} cannot be compared with the active {active}: {error}; to activate it unseen: --no-gate"
        ) from error
    stage = start_stage(folder / "activate", config)
    seconds = round(time.monotonic() - began, 1)
    write_json(stage / "metrics.json", comparison.as_dict() | {"seconds": seconds})
    print(comparison.table())
    if comparison.failed:
        raise GateFailed(
            f"{version} is not to follow {active}: {', '.join(map(str, comparison.failed))}; {active} stays active. "
            f"{stage / 'metrics.json'} has the intervals. Other limits: [gate] in the configuration, and srp4ctr export again; "
            "none: --no-gate"
        )


def compare(new: Bundle, active: Bundle, config: RunConfig, folder: Path, threads: int = 1) -> Comparison:
    """Both bundles on the test rows of the new one's run; DataError where one of them cannot read those."""
    prepared = Prepared.load(folder / "prepared")
    rows = sample_rows(prepared, config.gate.max_rows)
    theirs, their_rows = _as_read_by(active, config, prepared, rows)
    label, user = prepared.rows.label[rows], prepared.rows.user[rows]
    new_quality, active_quality = (
        evaluate_rows(label, user, predict_served(bundle, data, places, threads, progress=True))
        for bundle, data, places in ((new, prepared, rows), (active, theirs, their_rows))
    )
    return Comparison(
        new=new.manifest.version,
        active=active.manifest.version,
        rows=len(rows),
        users=len(np.unique(user)),
        new_quality=new_quality,
        active_quality=active_quality,
        checks=tuple(_checks(config.gate, new_quality, active_quality)),
    )


def sample_rows(prepared: Prepared, max_rows: int) -> Ints:
    """Places of at most so many test rows, all of a user's or none; those of one user, if even they are more."""
    rows = prepared.rows.of(TEST)
    user = prepared.rows.user[rows]
    users, counts = np.unique(user, return_counts=True)
    order = np.random.default_rng(SEED).permutation(len(users))
    fit = np.cumsum(counts[order]) <= max_rows
    fit[0] = True
    return rows[np.isin(user, users[order[fit]])]


def _as_read_by(bundle: Bundle, config: RunConfig, prepared: Prepared, rows: Ints) -> tuple[Prepared, Ints]:
    """The rows' users in the codes of another bundle, and the rows' places there."""
    users = np.unique(prepared.rows.user[rows])
    theirs = prepare_for(bundle, config, [one.decode() for one in prepared.users.ids[users].tolist()])
    # All rows of these users stand in both in the order of their table.
    shared = np.flatnonzero(np.isin(prepared.rows.user, users))
    both = (
        (
            one.users.ids[one.rows.user[at]],
            one.items.ids[one.rows.item[at] - 1],
            one.rows.cut[at],
            one.rows.label[at],
        )
        for one, at in ((prepared, shared), (theirs, np.arange(len(theirs.rows.label))))
    )
    if not all(map(np.array_equal, *both)):
        raise DataError(
            f"{config.tables.folder} has other rows or events than were prepared; prepare, train and export again"
        )
    return theirs, np.searchsorted(shared, rows)


def _checks(gate: GateConfig, new: Quality, active: Quality) -> Iterator[Check]:
    values = {
        name: (float(one), float(other))
        for name, one, other in zip(METRICS, active.value, new.value, strict=True)
    }
    before, after = values["auc"]
    yield Check("max_auc_drop", gate.max_auc_drop, "auc", before, after, before - after)
    before, after = values["logloss"]
    yield Check("max_logloss_rise", gate.max_logloss_rise, "logloss", before, after, after - before)
    before, after = values["ece"]
    yield Check("max_ece_rise", gate.max_ece_rise, "ece", before, after, after - before)
    if gate.max_ece is not None:
        yield Check("max_ece", gate.max_ece, "ece", before, after, after)


def _title(metric: str) -> str:
    return metric if metric == "logloss" else metric.upper()
