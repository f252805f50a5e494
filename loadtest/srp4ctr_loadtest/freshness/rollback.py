"""From the decision to roll back to the first answer by the version before, while the service has nothing else to do."""

import json
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.contract.manifest import MANIFEST
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.freshness.publishing import publish
from srp4ctr_loadtest.freshness.workplace import Workplace
from srp4ctr_loadtest.subject import Subject

TWIN = "-twin"
LONGEST_VERSION = 64
POLL_S = 0.002
GIVE_UP_S = 60.0
LONGEST_PAUSE_S = 1.0
"""Between two rollbacks, at random: services look for the active version in intervals, and must not be met at one moment of them."""


@dataclass(frozen=True)
class Rollback:
    """Milliseconds from the call of the store, and from the start of `srp4ctr rollback`, to the first answer by the other version.

    `command_ms` is how long that command itself takes, its start included.
    """

    times: int
    median_ms: float
    max_ms: float
    command_times: int
    command_ms: float
    command_to_answer_median_ms: float
    command_to_answer_max_ms: float


def measure(workplace: Workplace, subject: Subject, run: Path, times: int, command_times: int) -> Rollback:
    """Publish the version once more under another name, activate that, and then go back and forth."""
    twin = _twin(workplace, subject)
    publish(workplace, twin, run, histories=False)
    workplace.command("activate", twin, "--no-gate")
    store = StateStore(workplace.client, workplace.keys)
    generator = np.random.default_rng(0)
    with workplace.service() as service, ThreadPoolExecutor(1) as pool:
        asked = {"user_id": subject.users[0], "item_ids": subject.items(generator, 1), "deadline_ms": 10_000}
        with httpx.Client(base_url=service.url) as http:

            def serving() -> str:
                answer = http.post("/score", json=asked)
                version: str = answer.raise_for_status().json()["model_version"]
                return version

            def once(switch: Callable[[], object]) -> float:
                time.sleep(generator.uniform(0, LONGEST_PAUSE_S))
                before = serving()
                began = time.perf_counter()
                switch()
                while serving() == before:
                    if time.perf_counter() > began + GIVE_UP_S:
                        raise Srp4ctrError(
                            f"the service still serves {before} {GIVE_UP_S:.0f} s after a rollback"
                        )
                    time.sleep(POLL_S)
                return 1000 * (time.perf_counter() - began)

            by_store = [once(store.roll_back) for _ in range(times)]
            commands = []
            by_command = []
            for _ in range(command_times):
                by_command.append(once(lambda: commands.append(pool.submit(workplace.command, "rollback"))))
                commands[-1].result()
    return Rollback(
        times,
        statistics.median(by_store),
        max(by_store),
        command_times,
        1000 * statistics.median(one.result().wall_s for one in commands),
        statistics.median(by_command),
        max(by_command),
    )


def _twin(workplace: Workplace, subject: Subject) -> str:
    """The same model as another version."""
    version = subject.version[: LONGEST_VERSION - len(TWIN)] + TWIN
    folder = workplace.folder / "bundles" / version
    shutil.copytree(subject.bundle.folder, folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"version": version}))
    return version
