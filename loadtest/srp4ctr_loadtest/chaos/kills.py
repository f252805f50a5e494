"""Who is killed, and when."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from srp4ctr_loadtest.chaos.jobs import Jobs, Kind
from srp4ctr_loadtest.chaos.processes import System

Target = Literal["publish", "activate", "rollback", "prune", "items", "refresh", "service", "redis"]
TARGETS: tuple[Target, ...] = get_args(Target)
BEFORE = 0.25
"""Of the kills of jobs, those before the job has a connection to Redis: it can do no harm then."""
RETRY_S = 0.05


class Killer:
    """kill -9, as often for each kind of target, in random order."""

    def __init__(self, system: System, jobs: Jobs, random: np.random.Generator) -> None:
        self.killed: Counter[Target] = Counter()
        self._system = system
        self._jobs = jobs
        self._random = random

    async def kill(self, count: int, targets: Sequence[Target], gap_s: float) -> None:
        """So many kills, so many seconds apart on average; says on standard error what it does."""
        began = time.monotonic()
        in_turn = [targets[place % len(targets)] for place in range(count)]
        for number, place in enumerate(self._random.permutation(count), 1):
            await asyncio.sleep(self._random.exponential(gap_s))
            target = in_turn[place]
            if target in ("publish", "activate", "rollback", "prune", "items"):
                pid = await self._kill_job(target)
            else:
                pid = await self._kill_process(target)
            self.killed[target] += 1
            said = f"{number:>4}/{count} after {time.monotonic() - began:.1f} s: kill -9 {pid}, {target}"
            print(said, file=sys.stderr, flush=True)

    async def _kill_process(self, target: Literal["refresh", "service", "redis"]) -> int:
        one = {
            "refresh": self._system.refresh[int(self._random.integers(len(self._system.refresh)))],
            "service": self._system.service,
            "redis": self._system.redis,
        }[target]
        while True:
            pid = one.kill()
            if pid is not None:
                return pid
            await asyncio.sleep(RETRY_S)

    async def _kill_job(self, kind: Kind) -> int:
        took = self._jobs.took[kind]
        while True:
            run = await self._jobs.running(kind)
            if self._random.uniform() < BEFORE:
                wait_s = took.before_s
            elif await run.connected():
                wait_s = took.connected_s
            else:
                continue
            await asyncio.sleep(wait_s * self._random.uniform())
            pid = run.kill()
            if pid is not None:
                return pid
