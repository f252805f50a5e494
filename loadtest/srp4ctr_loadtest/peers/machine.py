"""The machine that a comparison runs on: what its report says of it, and where Redis runs meanwhile."""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from srp4ctr_loadtest.peers.catalogue import Peer
from srp4ctr_loadtest.peers.install import version_of
from srp4ctr_loadtest.peers.measure import Plan
from srp4ctr_loadtest.peers.workload import Workload


@contextlib.contextmanager
def redis_on(workload: Workload, core: int) -> Iterator[list[str]]:
    """Keep Redis off the servers' core, where it is a process that we may move; gives a note where it is not."""
    try:
        process = psutil.Process(workload.redis_pid())
        if not process.name().startswith("redis-server"):
            raise psutil.NoSuchProcess(process.pid)
        cores = process.cpu_affinity()
        process.cpu_affinity([core])
    except psutil.Error:
        yield ["Redis runs where it likes: it is not a process that this command may move."]
        return
    try:
        yield []
    finally:
        process.cpu_affinity(cores)


def machine() -> str:
    """Processor, number of CPUs, system and Python."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{cpu}, {os.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}"


def about(workload: Workload, peers: Sequence[Peer], plan: Plan) -> dict[str, str]:
    """What a run was made of, for its report."""
    cores = (
        f"the server on core {plan.server_core}, the loader on core {plan.loader_core}"
        if plan.server_core != plan.loader_core
        else "server and loader share the only core"
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "model": workload.subject.version,
        "machine": f"{machine()}; {cores}",
        "a closed loop": f"{plan.requests} requests a round",
        "an open loop": "none" if plan.open_loop_s is None else f"{plan.open_loop_s:g} s",
        "versions": ", ".join(dict.fromkeys(version_of(peer.environment) for peer in peers)),
    }
