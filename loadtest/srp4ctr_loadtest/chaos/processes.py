"""The processes that are killed: each is started by the command that a person types, and started again whenever it ends."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Self

import httpx
import numpy as np
import psutil
import redis

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr.runtime.local_redis import find_server
from srp4ctr.runtime.serving import COMMAND, free_port
from srp4ctr_loadtest.chaos.place import Place
from srp4ctr_loadtest.chaos.turns import Absence

REFRESH_WORKERS = 2
AWAY_S = 1.0
"""Longest time until a process is started again."""
POLL_S = 0.1
START_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0


class Supervised:
    """A command that is kept running."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes],
        random: np.random.Generator,
    ) -> None:
        self.ends: Counter[int] = Counter()
        """How often it ended by itself, with which code."""
        self.absences: list[Absence] = []
        """Since when it was killed, and until when it was started again."""
        self._command = command
        self._environment = environment
        self._log = log
        self._random = random
        self._process: asyncio.subprocess.Process | None = None
        self._killed = False

    async def keep(self) -> None:
        """Start it again and again, a random time after it ended; ends it when cancelled."""
        try:
            while True:
                self._killed = False
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, env=self._environment, stdout=self._log, stderr=self._log
                )
                if self.absences:
                    self.absences[-1].back_at = min(self.absences[-1].back_at, time.monotonic())
                code = await self._process.wait()
                if not self._killed:
                    self.ends[code] += 1
                await asyncio.sleep(AWAY_S * self._random.uniform())
        finally:
            await self._stop()

    def kill(self) -> int | None:
        """kill -9; the process's id, None where there is nothing to kill at the moment."""
        if self._process is None or self._process.returncode is not None:
            return None
        self._killed = True
        self.absences.append(Absence(time.monotonic()))
        self._process.kill()
        return self._process.pid

    def children(self) -> list[psutil.Process]:
        """Processes that it has started and that live."""
        if self._process is None or self._process.returncode is not None:
            return []
        try:
            return list(psutil.Process(self._process.pid).children())
        except psutil.NoSuchProcess:
            return []

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


class Service(Supervised):
    """`srp4ctr serve` with several workers: killed is the process that supervises them, or one of them."""

    vanished = 0
    """Workers that ended by themselves."""
    _seen: tuple[int, frozenset[int]] = (0, frozenset())
    _chosen: frozenset[int] = frozenset()

    async def watch(self) -> None:
        """Look again and again, until cancelled, whether a worker is gone that nobody has killed."""
        while True:
            self.look()
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Count the workers that have gone since the last look, and that the same supervisor has lived through."""
        process = self._process
        if process is None or process.returncode is not None or self._killed:
            self._seen = 0, frozenset()
            return
        workers = frozenset(int(child.pid) for child in self.children() if _works(child))
        supervisor, before = self._seen
        if supervisor == process.pid:
            self.vanished += len(before - workers - self._chosen)
        self._seen = process.pid, workers

    def kill(self) -> int | None:
        """kill -9 of any of its processes; the process's id, None where there is nothing to kill at the moment."""
        workers = [child for child in self.children() if _works(child)]
        chosen = self._random.integers(len(workers) + 1)
        if chosen == len(workers):
            return super().kill()
        pid = int(workers[chosen].pid)
        self._chosen |= {pid}
        try:
            workers[chosen].kill()
        except psutil.NoSuchProcess:
            return None
        return pid


@dataclass(frozen=True)
class System:
    """All that is kept running, and where the service answers."""

    redis: Supervised
    service: Service
    refresh: Sequence[Supervised]
    url: str

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, place: Place, appendfsync: str, workers: int, random: np.random.Generator
    ) -> AsyncIterator[Self]:
        """Everything as processes, kept running while entered."""
        port = free_port()
        options = {
            "--port": "0",
            "--unixsocket": str(place.socket),
            "--unixsocketperm": "700",
            "--dir": str((place.folder / "redis").absolute()),
            "--appendonly": "yes",
            "--appendfsync": appendfsync,
            "--save": "",
        }
        server = [str(find_server()), *(word for option in options.items() for word in option)]
        serve = [*COMMAND, "serve", "--port", str(port), "--workers", str(workers)]
        environment = place.environment()
        with contextlib.ExitStack() as logs:

            def log(name: str) -> IO[bytes]:
                return logs.enter_context(place.log(name))

            system = cls(
                Supervised(server, environment, log("redis"), random),
                Service(serve, environment, log("service"), random),
                [
                    Supervised([*COMMAND, "refresh"], environment, log("refresh"), random)
                    for _ in range(REFRESH_WORKERS)
                ],
                f"http://127.0.0.1:{port}",
            )
            kept = [
                asyncio.create_task(work)
                for work in (
                    system.service.watch(),
                    *(one.keep() for one in (system.redis, system.service, *system.refresh)),
                )
            ]
            try:
                yield system
            finally:
                for task in kept:
                    # Whoever is told twice to end its process does not wait for that.
                    if not task.cancelling():
                        task.cancel()
                await asyncio.gather(*kept, return_exceptions=True)

    def ended(self) -> dict[str, int]:
        """How many processes ended by themselves, by name and exit code."""
        found: Counter[str] = Counter()
        for name, one in (
            ("redis", self.redis),
            ("service", self.service),
            *(("refresh", one) for one in self.refresh),
        ):
            for code, count in one.ends.items():
                found[f"{name}, exit code {code}"] += count
        if self.service.vanished:
            found["a worker of the service"] += self.service.vanished
        return dict(found)

    async def redis_answers(self, place: Place) -> None:
        """Wait until Redis has loaded its data."""
        give_up_at = time.monotonic() + START_LIMIT_S
        with place.client() as client:
            while not _pings(client):
                await _again(give_up_at, "Redis")

    async def service_ready(self) -> None:
        """Wait until the service is ready."""
        give_up_at = time.monotonic() + START_LIMIT_S
        async with httpx.AsyncClient(base_url=self.url) as client:
            while not await _ready(client):
                await _again(give_up_at, "the service")


async def _again(give_up_at: float, what: str) -> None:
    if time.monotonic() > give_up_at:
        raise ServiceNotReady(
            f"{what} was not ready in {START_LIMIT_S:.0f} s; the logs are below the var folder"
        )
    await asyncio.sleep(POLL_S)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        answer = await client.get("/readyz")
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _works(process: psutil.Process) -> bool:
    """Whether it is a worker: Python's own process beside them does nothing that could go wrong."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False
