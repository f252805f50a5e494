"""What the workers of one service have counted, and what they use together under prometheus_client's names for one process."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
# proc_pid_stat(5): fields behind the command's name, which may contain anything; the first of them is the third.
_STATE, _UTIME, _CUTIME, _CSTIME, _START = 3 - 3, 14 - 3, 16 - 3, 17 - 3, 22 - 3
_BEING_REAPED = "X"
TRIES = 5
"""Looks at the supervisor and its workers until none of these was reaped meanwhile."""


class CountsCollector(Collector):
    """What all workers have counted, by the files of a folder that each of them writes.

    A file is empty for a moment when a worker begins, and for good where it ended just then. prometheus_client's own collector gives
    nothing of anybody while there is one (github.com/prometheus/client_python, issue 1199).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """The metrics; what workers that have ended had counted is among them, and not what they served."""
        _leave_out_dead(self._folder)
        files = [str(path) for path in self._folder.glob("*.db") if _is_begun(path)]
        found: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return found


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
            began = _booted() + int(_stat(self._supervisor)[_START]) / _TICKS
            workers = _children(self._supervisor)
            ticks = _used(self._supervisor)
        except OSError:
            return
        if ticks is not None:
            yield CounterMetricFamily("process_cpu_seconds", "CPU time of all workers", ticks / _TICKS)
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory of all workers; what they share counts once (proportional set size)",
            sum(map(_resident, [self._supervisor, *workers])),
        )
        yield GaugeMetricFamily("process_start_time_seconds", "Start of the supervisor, Unix time", began)


def _leave_out_dead(folder: Path) -> None:
    """Remove what ended workers served, as they serve it no more; another worker that is asked at the same time does so, too."""
    for path in folder.glob("gauge_live*_*.db"):
        if not (PROC / path.stem.rpartition("_")[2]).exists():
            # prometheus_client's mark_process_dead fails where the file has just gone.
            path.unlink(missing_ok=True)


def _is_begun(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        # Another worker, asked at the same time, has removed what an ended one served.
        return False


def _used(supervisor: int) -> int | None:
    """Ticks of the supervisor and all workers there ever were; None where these end faster than they can be looked at.

    When a worker is reaped, its ticks move to its parent. Seen on both sides of that, or on neither, they would count twice or not
    at all: the counter would fall then or the next time. Raises OSError where there is no such supervisor.
    """
    for _ in range(TRIES):
        before, workers = _stat(supervisor), _children(supervisor)
        try:
            stats = [_stat(worker) for worker in workers]
        except OSError:
            continue
        own = _stat(supervisor)
        moved = own[_CUTIME : _CSTIME + 1] != before[_CUTIME : _CSTIME + 1]
        if not moved and all(stat[_STATE] != _BEING_REAPED for stat in stats):
            return sum(map(_ticks, [own, *stats]))
    return None


def _stat(pid: int) -> Sequence[str]:
    return (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()


def _ticks(stat: Sequence[str]) -> int:
    """Of the process, and of its children that have ended."""
    return sum(map(int, stat[_UTIME : _CSTIME + 1]))


def _children(pid: int) -> set[int]:
    return {
        int(child) for path in (PROC / f"{pid}/task").glob("*/children") for child in path.read_text().split()
    }


def _resident(pid: int) -> int:
    """Bytes; 0 for one that has ended."""
    try:
        lines = (PROC / f"{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _booted() -> int:
    lines = (PROC / "stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("btime "))
