"""publish, activate, rollback, prune and items, again and again, each run until it completes however often it is cut off."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import psutil

from srp4ctr.contract.errors import BundleError, ServiceNotReady, StoreUnavailable
from srp4ctr.runtime.bundle import open_revision, revisions_folder
from srp4ctr.runtime.serving import COMMAND
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.chaos.catalogues import OWN, Catalogues
from srp4ctr_loadtest.chaos.place import Place
from srp4ctr_loadtest.chaos.turns import Turns
from srp4ctr_loadtest.chaos.versions import EXTRA, Trained

Kind = Literal["publish", "activate", "rollback", "prune", "items"]
ROUND: tuple[Kind, ...] = ("publish", "activate", "items", "rollback", "rollback", "prune")
"""What is done with each version: the second rollback goes forward to it again, and a third version is then removed."""
SWITCHES: tuple[Kind, ...] = ("activate", "rollback")
T = TypeVar("T")
POLL_S = 0.002
RUN_LIMIT_S = 300.0
"""A run that takes longer hangs."""
MAX_RUNS = 40
"""Of one job: kills are seconds apart, and a job of a small version takes seconds."""
LOOK_AGAIN_S = 0.1
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
    tables: Sequence[Path]
    """Of items to add."""
    catalogues: Catalogues
    turns: Turns
    """Of the versions that runs have begun to activate, or have activated."""
    took: dict[Kind, Took] = field(default_factory=dict)
    active: str | None = None
    """That which the last activation or rollback to complete has switched to."""
    previous: str | None = None
    """That which was active before it."""
    published: set[str] = field(default_factory=set)
    """Versions that may be activated."""
    completed: int = 0
    reruns: int = 0
    """Jobs that were cut off, by a kill or because Redis was away, and were run again."""
    reruns_completed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Errors that runs ended in, though they were not killed and Redis was there, and what jobs left that should not be."""
    _run: Run | None = None
    """The one that was begun last."""
    _begun: asyncio.Event = field(default_factory=asyncio.Event)
    _awaited: Kind | None = None
    _table: int = 0
    _stopping: bool = False

    async def set_up(self, versions: Sequence[str]) -> None:
        """Publish them all and activate the first, after the second, undisturbed; raises ServiceNotReady."""
        first, second = versions[:2]
        publish: list[tuple[Kind, str]] = [("publish", version) for version in versions]
        switch: list[tuple[Kind, str]] = [("activate", first), ("activate", second), ("rollback", first)]
        # What is removed is published again, so that all versions are there.
        for kind, version in [*publish, *switch, ("prune", first), *publish[2:], ("items", first)]:
            run = await self._start(kind, version)
            outcome = asyncio.create_task(run.outcome())
            await run.connected()
            connected = time.monotonic()
            code, said = await outcome
            if code:
                raise ServiceNotReady(f"srp4ctr {kind} {version} ended with {code}: {said}")
            self.took[kind] = Took(connected - run.began, time.monotonic() - connected)
            self._completed(kind, version)
            await self._redis_says(partial(self.check, kind))

    async def go_on(self, versions: Sequence[str]) -> None:
        """Rounds with the version that follows the active one, until stopped; a job that somebody waits for comes first."""
        rounds = itertools.cycle(ROUND)
        while not self._stopping:
            kind: Kind = next(rounds) if self._awaited is None else self._awaited
            assert self.active is not None
            following = versions[(versions.index(self.active) + 1) % len(versions)]
            if kind == "activate" and following not in self.published:
                kind = "publish"
            await self._complete(kind, self.active if kind == "items" else following)

    def stop(self) -> None:
        """End when the present job has completed."""
        self._stopping = True

    async def running(self, kind: Kind) -> Run:
        """The run of that kind that is under way, or else the next, as it begins."""
        while True:
            if self._run is not None and self._run.kind == kind and self._run.lives:
                return self._run
            self._awaited = kind
            await self._begun.wait()
            self._awaited = None

    async def _complete(self, kind: Kind, version: str) -> None:
        if kind == "rollback":
            assert self.previous is not None
            version = self.previous
        if kind == "items":
            self._table = (self._table + 1) % len(self.tables)
        for attempt in range(MAX_RUNS):
            # A rollback that was cut off may have switched, and another would go forward again.
            switched = kind == "rollback" and attempt > 0 and await self._redis_says(_active) == version
            run = await self._start("activate" if switched else kind, version)
            code, said = await run.outcome()
            if code == 0:
                self.completed += 1
                self.reruns_completed += attempt > 0
                self._completed(kind, version)
                await self._redis_says(partial(self.check, kind))
                return
            away = REDIS_AWAY in said and self.turns.redis_was_away(run.began, time.monotonic())
            if not (run.killed or away):
                self.failures[f"{kind}: {said}"] += 1
            self.reruns += attempt == 0

    def check(self, kind: Kind, store: StateStore) -> None:
        """Count it as a failure where a job has left another version active, or before the active one, or states to be removed."""
        active = store.active()
        found = (None, None) if active is None else (active.version, active.previous)
        wanted = self.active, self.previous
        known = set(store.versions())
        others = sorted({*known, *self.trained.bundles}.difference(wanted)) if kind == "prune" else ()
        bundles = self.trained.folder / "bundles"
        left = [
            one
            for one in others
            if one in known
            or next(store.users(one), None) is not None
            or revisions_folder(bundles, one).exists()
        ]
        if found != wanted:
            self.failures[
                f"{kind}: left {found[0]} after {found[1]}, and not {wanted[0]} after {wanted[1]}"
            ] += 1
        if kind == "items":
            self._take_items(store)
        if left:
            self.failures[f"{kind}: left {', '.join(left)}"] += 1

    def _take_items(self, store: StateStore) -> None:
        assert self.active is not None
        bundle, made_of = self.trained.bundles[self.active], self.tables[self._table].name
        revision = store.items_revision(self.active)
        try:
            items = open_revision(bundle, revision).items
        except BundleError as error:
            self.failures[f"items: {error}"] += 1
            return
        if not items.rows(EXTRA).all():
            self.failures[f"items: {made_of} is not what is in use"] += 1
            return
        self.catalogues.complete(self.active, made_of, time.monotonic(), revision, items)

    async def _redis_says(self, question: Callable[[StateStore], T]) -> T:
        """Asks until Redis is there."""
        while True:
            try:
                return await asyncio.to_thread(self._ask, question)
            except StoreUnavailable:
                await asyncio.sleep(LOOK_AGAIN_S)

    def _ask(self, question: Callable[[StateStore], T]) -> T:
        with self.place.client() as client:
            return question(StateStore(client, self.place.keys))

    def _completed(self, kind: Kind, version: str) -> None:
        if kind == "publish":
            self.published.add(version)
        if kind == "prune":
            for one in set(self.trained.bundles) - {self.active, self.previous}:
                own = self.trained.bundles[one].items
                self.catalogues.complete(one, OWN, time.monotonic(), None, own)
        if kind in SWITCHES:
            if version != self.active:
                self.active, self.previous = version, self.active
            self.turns.complete(version, time.monotonic())

    async def _start(self, kind: Kind, version: str) -> Run:
        """Of a rollback, the version is that which it should go back to."""
        if kind in SWITCHES:
            self.turns.begin(version, time.monotonic())
        if kind == "items":
            self.catalogues.begin(version, self.tables[self._table].name, time.monotonic())
        if kind == "prune":
            # The pointers to their items go with their states.
            for one in set(self.trained.bundles) - {self.active, self.previous}:
                self.catalogues.begin(one, OWN, time.monotonic())
            self.published &= {one for one in (self.active, self.previous) if one}
        arguments = {
            "publish": ["publish", version, "--threads", "1", "--run", str(self.trained.runs[version])],
            # Every version is to be activated, whatever items the active one has been given.
            "activate": ["activate", version, "--no-gate", "--leave-items"],
            "rollback": ["rollback"],
            "prune": ["versions", "--prune"],
            "items": ["items", version, str(self.tables[self._table].absolute())],
        }
        with self.place.log(kind) as log:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                *arguments[kind],
                env=self.place.environment(),
                stdout=log,
                stderr=asyncio.subprocess.PIPE,
            )
        self._run = Run(kind, process)
        # Whoever waits now is woken, and nobody after.
        self._begun.set()
        self._begun.clear()
        return self._run


def _active(store: StateStore) -> str | None:
    active = store.active()
    return None if active is None else active.version
