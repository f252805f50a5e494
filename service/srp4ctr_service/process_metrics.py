"""What the workers of one service use together, under the names that prometheus_client has for one process."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
# proc_pid_stat(5): fields behind the command's name, which may contain anything; the first of them is the third.
_UTIME, _CSTIME, _START = 14 - 3, 17 - 3, 22 - 3


class WorkersCollector(Collector):
    """CPU of the supervisor, its workers and those that have ended, so that it never falls; memory of those that run.

    Linux only: elsewhere it has nothing.
    """

    def __init__(self, supervisor: int) -> None:
        """`supervisor` is the workers' parent."""
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        try:
            own = _stat(self._supervisor)
            workers = _children(self._supervisor)
            began = _booted() + int(own[_START]) / _TICKS
        except OSError:
            return
        ticks, resident = _ticks(own), _resident(self._supervisor)
        for worker in workers:
            try:
                ticks += _ticks(_stat(worker))
                resident += _resident(worker)
            except OSError:
                # It has ended meanwhile; its parent has its ticks the next time.
                continue
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of all workers", ticks / _TICKS)
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory of all workers; what they share counts once (proportional set size)",
            resident,
        )
        yield GaugeMetricFamily("process_start_time_seconds", "Start of the supervisor, Unix time", began)


def _stat(pid: int) -> Sequence[str]:
    return (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()


def _ticks(stat: Sequence[str]) -> int:
    """Of the process, and of its children that have ended."""
    return sum(map(int, stat[_UTIME : _CSTIME + 1]))


def _children(pid: int) -> list[int]:
    return [
        int(child) for path in (PROC / f"{pid}/task").glob("*/children") for child in path.read_text().split()
    ]


def _resident(pid: int) -> int:
    """Bytes; 0 for one that has ended and is not waited for yet."""
    lines = (PROC / f"{pid}/smaps_rollup").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _booted() -> int:
    lines = (PROC / "stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("btime "))
