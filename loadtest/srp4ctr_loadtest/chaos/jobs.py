"""publish and activate, again and again, each run until it completes however often it is cut off."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import psutil

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr.runtime.serving import COMMAND
from srp4ctr_loadtest.chaos.place import Place
from srp4ctr_loadtest.chaos.turns import Turns
from srp4ctr_loadtest.chaos.versions import Trained

Kind = Literal["publish", "activate"]
POLL_S = 0.002
RUN_LIMIT_S = 300.0
"""A run that takes longer hangs."""
MAX_RUNS = 40
"""Of one job: kills are seconds apart, and a job of a small version takes seconds."""
REDIS_AWAY = "Redis: "
"""What a job says that found Redis away, or lost it."""


class Run:
    """One run of a job, which may be killed."""

    def __init__(self, kind: Kind, process: asyncio.subprocess.Process) -> None:
        self.kind = kind
        self.killed = False
        self.began = time.monotonic()
        self._process = process

    @property
    def lives(self) -> bool:
        """Whether it has not ended, nor been killed."""
        return self._process.returncode is None and not self.killed

    def kill(self) -> int | None:
        """kill -9; the process's id, None where it has ended."""
        if not self.lives:
            return None
        self.killed = True
        self._process.kill()
        return self._process.pid

    async def connected(self) -> bool:
        """Wait until it has a connection to Redis; False where it has ended before."""
        while self.lives:
            try:
                if psutil.Process(self._process.pid).net_connections(kind="unix"):
                    return True
            except psutil.Error:
                break
            await asyncio.sleep(POLL_S)
        return False

    async def outcome(self) -> tuple[int, str]:
        """Its exit code, and the last line that it wrote to standard error."""
        try:
            _, said = await asyncio.wait_for(self._process.communicate(), RUN_LIMIT_S)
        except TimeoutError:
            return -1, f"did not end in {RUN_LIMIT_S:.0f} s"
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        assert self._process.returncode is not None
        return self._process.returncode, said.decode(errors="replace").strip().rpartition("\n")[2]


@dataclass
class Took:
    """Seconds of an undisturbed run: until it had a connection to Redis, and from then on."""

    before_s: float
    connected_s: float


@dataclass
class Jobs:
    """One job at a time, and what became of them."""

    place: Place
    trained: Trained
    turns: Turns
    """Of the versions that runs have begun to activate, or have activated."""
    took: dict[Kind, Took] = field(default_factory=dict)
    active: str | None = None
    """That whose activation was the last to complete."""
    completed: int = 0
    reruns: int = 0
    """Jobs that were cut off, by a kill or because Redis was away, and were run again."""
    reruns_completed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Errors that runs ended in, though they were not killed and Redis was there."""
    _run: Run | None = None
    """The one that was begun last."""
    _begun: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    async def set_up(self, versions: Sequence[str]) -> None:
        """Publish them all and activate the first, undisturbed; raises ServiceNotReady."""
        jobs: list[tuple[Kind, str]] = [("publish", version) for version in versions]
        for kind, version in [*jobs, ("activate", versions[0])]:
            run = await self._start(kind, version)
            outcome = asyncio.create_task(run.outcome())
            await run.connected()
            connected = time.monotonic()
            code, said = await outcome
            if code:
                raise ServiceNotReady(f"srp4ctr {kind} {version} ended with {code}: {said}")
            self.took[kind] = Took(connected - run.began, time.monotonic() - connected)
        self._switched(versions[0])

    async def go_on(self, versions: Sequence[str]) -> None:
        """Publish and activate one version after the other, beginning with the second, until stopped."""
        for version in itertools.islice(itertools.cycle(versions), 1, None):
            kinds: tuple[Kind, ...] = ("publish", "activate")
            for kind in kinds:
                if self._stopping:
                    return
                await self._complete(kind, version)

    def stop(self) -> None:
        """End when the present job has completed."""
        self._stopping = True

    async def running(self, kind: Kind) -> Run:
        """The run of that kind that is under way, or else the next, as it begins."""
        while True:
            if self._run is not None and self._run.kind == kind and self._run.lives:
                return self._run
            await self._begun.wait()

    async def _complete(self, kind: Kind, version: str) -> None:
        for attempt in range(MAX_RUNS):
            run = await self._start(kind, version)
            code, said = await run.outcome()
            if code == 0:
                self.completed += 1
                self.reruns_completed += attempt > 0
                if kind == "activate":
                    self._switched(version)
                return
            if not (run.killed or REDIS_AWAY in said):
                self.failures[f"{kind}: {said}"] += 1
            self.reruns += attempt == 0

    def _switched(self, version: str) -> None:
        self.active = version
        self.turns.complete(version, time.monotonic())

    async def _start(self, kind: Kind, version: str) -> Run:
        if kind == "activate":
            self.turns.begin(version, time.monotonic())
        options = {
            "publish": ["--threads", "1", "--run", str(self.trained.runs[version])],
            "activate": ["--no-gate"],
        }
        with self.place.log(kind) as log:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                kind,
                version,
                *options[kind],
                env=self.place.environment(),
                stdout=log,
                stderr=asyncio.subprocess.PIPE,
            )
        self._run = Run(kind, process)
        # Whoever waits now is woken, and nobody after.
        self._begun.set()
        self._begun.clear()
        return self._run
