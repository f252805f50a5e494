"""Where the benchmark works: a var folder and a Redis of its own, so that nothing of a deployment is touched."""

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import redis

from srp4ctr.contract.errors import ServiceNotReady, Srp4ctrError
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.local_redis import LocalRedis
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.serving import COMMAND, RunningService, free_port, running_service
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.subject import Subject

STOP_LIMIT_S = 30.0
LAST_WORDS = 3000


@dataclass(frozen=True)
class Cores:
    """The core of what is measured, and that of Redis and of whoever asks; one and the same where there is no second."""

    measured: int
    others: int

    @classmethod
    def available(cls) -> Self:
        """The first core that this process may use, and the last."""
        found = sorted(os.sched_getaffinity(0))
        return cls(found[0], found[-1])

    def __str__(self) -> str:
        if self.measured == self.others:
            return "all on the only core"
        return "what is measured on one core, Redis and the loader on another"


@dataclass(frozen=True)
class Spent:
    """Seconds that a command took, and its CPU seconds with those of the processes that it started."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Workplace:
    """A var folder, the settings of everything that runs in it, its Redis, and who runs on which core."""

    folder: Path
    settings: StoreSettings
    client: redis.Redis
    redis_process: psutil.Process
    cores: Cores

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, cores: Cores) -> Iterator[Self]:
        """An empty one in that folder, whose Redis ends on leaving; what was in the folder before is removed."""
        settings = read_settings(StoreSettings, var_dir=folder)
        # A benchmark that was killed may have left its own behind.
        local = LocalRedis(settings)
        local.stop()
        shutil.rmtree(folder, ignore_errors=True)
        with on_core(cores.others):
            url = local.ensure()
        settings = settings.model_copy(update={"redis_url": url})
        try:
            with connect(settings, url) as client:
                process = psutil.Process(int(client.info("server")["process_id"]))
                yield cls(folder, settings, client, process, cores)
        finally:
            local.stop()

    @property
    def keys(self) -> Keys:
        """The names of everything in its Redis."""
        return Keys(self.settings.namespace)

    @property
    def url(self) -> str:
        """The address of its Redis."""
        assert self.settings.redis_url is not None
        return self.settings.redis_url

    @property
    def variables(self) -> Mapping[str, str]:
        """What a command has to be told to work here."""
        return {
            "SRP4CTR_VAR_DIR": str(self.folder),
            "SRP4CTR_REDIS_URL": self.url,
            "SRP4CTR_LOG_LEVEL": "warning",
        }

    def redis_says(self) -> str:
        """Version, allocator and persistence of its Redis."""
        server, memory = self.client.info("server"), self.client.info("memory")
        options = self.client.config_get("append*")
        log = (
            f"appendfsync {options['appendfsync']}"
            if options["appendonly"] == "yes"
            else "no append-only file"
        )
        return f"{server['redis_version']}, {memory['mem_allocator']}, {log}"

    def take_in(self, bundle: Path, run: Path) -> Path:
        """Have a bundle here, and a run whose prepared data are those of `run` and nothing else is; gives that run."""
        (self.folder / "bundles").mkdir(parents=True, exist_ok=True)
        (self.folder / "bundles" / bundle.name).symlink_to(bundle.absolute())
        # Commands write their stages into it, which is nothing that the run itself should have.
        own = self.folder / "runs" / run.name
        own.mkdir(parents=True)
        for stage in ("prepared", "finetune"):
            if not (run / stage).is_dir():
                raise Srp4ctrError(f"{run} has no {stage}/; name the run of {bundle.name} with --run")
            (own / stage).symlink_to((run / stage).absolute())
        return own

    def subject(self, version: str) -> Subject:
        """A version that is published here, with all its users."""
        users = sorted(StateStore(self.client, self.keys).users(version))
        bundle = find_bundle(version, self.folder / "bundles")
        return Subject(version, bundle, self.url, users, [])

    def command(self, *arguments: str) -> Spent:
        """Run a `srp4ctr` command to its end on the core of what is measured; Srp4ctrError where it fails."""
        began, used = time.perf_counter(), _children_cpu_s()
        with on_core(self.cores.measured):
            done = subprocess.run(
                [*COMMAND, *arguments],
                env={**os.environ, **self.variables},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise Srp4ctrError(
                f"srp4ctr {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-LAST_WORDS:]}"
            )
        return Spent(time.perf_counter() - began, _children_cpu_s() - used)

    @contextlib.contextmanager
    def service(self) -> Iterator[RunningService]:
        """The service on the core of what is measured."""
        with contextlib.ExitStack() as stack:
            with on_core(self.cores.measured):
                service = stack.enter_context(running_service(free_port(), self.variables))
            yield service

    @contextlib.contextmanager
    def worker(self) -> Iterator[psutil.Process]:
        """A refresh worker on the core of what is measured; raises ServiceNotReady where it ended too early."""
        with on_core(self.cores.measured):
            process = subprocess.Popen([*COMMAND, "refresh"], env={**os.environ, **self.variables})
        try:
            yield psutil.Process(process.pid)
            if process.poll() is not None:
                raise ServiceNotReady(
                    f"the refresh worker ended with {process.returncode}; its log stands above"
                )
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that the process has used since it began."""
    times = process.cpu_times()
    used: float = times.user + times.system
    return used


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
