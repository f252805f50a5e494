"""Users that `srp4ctr publish` writes a second, on one core, with one thread."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srp4ctr.runtime.bundle import find_bundle
from srp4ctr_loadtest.freshness.workplace import Workplace, cpu_s

CLOCK_TICK_S = 0.01
"""What the kernel counts CPU in."""


@dataclass(frozen=True)
class PublishRate:
    """A publication from connecting to Redis to the end, by the command's own clock: tables are read, states and histories written,
    and `verified` users are encoded once more and compared.

    `cpu_s` is that of the command without its imports; `redis_cpu_s` that of Redis meanwhile.
    """

    version: str
    users: int
    max_events: int
    mean_events: float
    histories: bool
    verified: int
    seconds: float
    users_per_s: float
    cpu_s: float
    users_per_cpu_s: float
    redis_cpu_s: float


def publish(workplace: Workplace, version: str, run: Path, *, histories: bool = True) -> PublishRate:
    """Publish a run of the workplace, with raw histories or without."""
    # It ends when it has imported what it needs.
    start = workplace.command("publish", "--help")
    before = cpu_s(workplace.redis_process)
    options = [] if histories else ["--no-histories"]
    spent = workplace.command("publish", version, "--run", str(run), "--threads", "1", *options)
    redis_cpu_s = cpu_s(workplace.redis_process) - before
    own_cpu_s = max(CLOCK_TICK_S, spent.cpu_s - start.cpu_s)
    found = json.loads((run / "publish" / "metrics.json").read_bytes())
    assert found["written"] == found["users"], found
    bundle = find_bundle(version, workplace.folder / "bundles")
    keep = bundle.transforms.schema.max_events
    events = np.diff(np.load(run / "prepared" / "events" / "start.npy"))
    return PublishRate(
        version=version,
        users=found["users"],
        max_events=keep,
        mean_events=float(np.minimum(events, keep).mean()),
        histories=histories,
        verified=found["verified"],
        seconds=found["seconds"],
        users_per_s=found["users"] / found["seconds"],
        cpu_s=own_cpu_s,
        users_per_cpu_s=found["users"] / own_cpu_s,
        redis_cpu_s=redis_cpu_s,
    )
