"""A service of the load test's own, with a copy of what Redis holds: nothing of a deployment is changed."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil
import redis

from srp4ctr.contract.errors import ServiceNotReady, StoreError
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.local_redis import LocalRedis
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.serving import COMMAND, STOP_LIMIT_S, free_port, running_service
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr_loadtest.cores import on_core

BATCH = 1000
MEMORY_SHARE = 0.5
"""Of what is free here, at most, for the copy."""
FOLDER = "loadtest"
"""Below the var folder."""


@dataclass(frozen=True)
class Target:
    """Where the service answers, and its first process where it was started for the load test; who runs on which core."""

    url: str
    pid: int | None
    where: str


@contextlib.contextmanager
def own_service(settings: StoreSettings) -> Iterator[Target]:
    """The active version served and refreshed beside a copied Redis below var/loadtest; all of it ends, and is removed, on leaving.

    The service has the first core that this process may use; the others and the loader meanwhile have the last. Raises
    StoreError where the copy cannot be made.
    """
    source = local_redis.ensure(settings)
    cores = sorted(os.sched_getaffinity(0))
    # Unset there, or the copy would be the original.
    folder = settings.var_dir / FOLDER
    own = LocalRedis(settings.model_copy(update={"var_dir": folder, "redis_url": None}))
    with on_core(cores[-1]), contextlib.ExitStack() as stack:
        # Users who are forgotten later must not be left in a copy.
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        target = own.ensure()
        stack.callback(own.stop)
        _copy(settings, source, target)
        variables = {"SRP4CTR_REDIS_URL": target}
        with on_core(cores[0]):
            service = stack.enter_context(running_service(free_port(), variables))
        stack.enter_context(_worker(variables))
        where = (
            "all on the only core"
            if len(cores) == 1
            else f"service on core {cores[0]}; refresh worker, Redis and loader on core {cores[-1]}"
        )
        processes = 1 + len(psutil.Process(service.pid).children(recursive=True))
        about = "one process" if processes == 1 else f"{processes} processes"
        yield Target(service.url, service.pid, f"started here, {about}; {where}")


@contextlib.contextmanager
def _worker(variables: Mapping[str, str]) -> Iterator[None]:
    """A refresh worker, so that what users do gets into their states."""
    environment = {**os.environ, "SRP4CTR_LOG_LEVEL": "warning", **variables}
    process = subprocess.Popen([*COMMAND, "refresh"], env=environment)
    try:
        yield
        if process.poll() is not None:
            raise ServiceNotReady(f"the refresh worker ended with {process.returncode}; its log stands above")
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _copy(settings: StoreSettings, source: str, target: str) -> None:
    """Have there what is here, in the namespace of the settings."""
    try:
        with connect(settings, source) as reader, connect(settings, target) as writer:
            held = reader.info("memory")["used_memory"]
            if held > MEMORY_SHARE * psutil.virtual_memory().available:
                raise StoreError(
                    f"Redis holds {held / 1e6:,.0f} MB, too much to copy here; name a running service with --url"
                )
            # What a load test that was killed has left behind.
            writer.flushall()
            keys: list[bytes] = []
            for key in reader.scan_iter(f"{settings.namespace}:*", count=BATCH):
                keys.append(key)
                if len(keys) == BATCH:
                    _copy_keys(reader, writer, keys)
                    keys = []
            _copy_keys(reader, writer, keys)
    except redis.RedisError as error:
        raise StoreError(
            f"Redis cannot be copied for the load test ({error}); name a running service with --url"
        ) from error


def _copy_keys(reader: redis.Redis, writer: redis.Redis, keys: list[bytes]) -> None:
    reading = reader.pipeline(transaction=False)
    for key in keys:
        reading.dump(key)
        reading.pttl(key)
    found = reading.execute()
    writing = writer.pipeline(transaction=False)
    for key, dump, ttl_ms in zip(keys, found[::2], found[1::2], strict=True):
        # Gone since it was seen.
        if dump is not None:
            writing.restore(key, max(0, ttl_ms), dump, replace=True)
    writing.execute()
