"""The model's turn: one run at a time, in the event loop, which looks at the network between any two.

A thread of its own for the model cost more than it gave: handing a run over and back is up to half a millisecond of CPU,
and on the one core that a worker has nothing runs at the same time anyway (docs/decisions/0008).
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from srp4ctr.contract.errors import Overloaded

T = TypeVar("T")

ROWS_OF_A_RUN = 100
"""What a run costs beside its rows, and the request around it, in rows: seen for networks of the default sizes."""
RUNS_REMEMBERED = 9
"""Of which the estimate of a row's time is the median: what holds a process up now and then is not what its runs take."""
PROBE_AFTER = 16
"""Times that jobs were given up with nothing run in between: then one is run all the same, since an estimate that only refuses never
learns."""


@dataclass(eq=False)
class _Job(Generic[T]):
    rows: int
    deadline: float
    work: Callable[[], T]
    result: asyncio.Future[T | None]


class Compute:
    """Runs jobs in the order in which they come, and knows how long those that wait will take.

    A job whose turn cannot come in time is given up while there is time for another answer, and not only at its turn. A
    job's size is its candidate rows. Times are by `time.perf_counter()`, in seconds.
    """

    def __init__(self, max_rows: int) -> None:
        """Takes jobs of so many rows together at a time."""
        self._max_rows = max_rows
        self._jobs: deque[_Job[object]] = deque()
        self._rows = self._runs = 0
        self._scheduled = False
        self._earliest = math.inf
        """No job that waits must begin before, by what was known of runs when it came."""
        self._recent: deque[float] = deque(maxlen=RUNS_REMEMBERED)
        self._seconds_per_row = 0.0
        self._given_up = 0
        self.done = 0
        """Runs so far."""
        self._busy_since: float | None = None
        """When the last run ended, where another waited then."""

    @property
    def wait_s(self) -> float:
        """Estimated time until all that was admitted is done."""
        return self._seconds_per_row * (self._rows + ROWS_OF_A_RUN * self._runs)

    def seconds(self, rows: float) -> float:
        """Estimated time of a run of so many rows, with what comes between runs under load; 0 before anything has run."""
        return self._seconds_per_row * (rows + ROWS_OF_A_RUN)

    def over(self, rows: float) -> bool:
        """Whether so many rows more would be too many; a single request never is."""
        return self._rows > 0 and self._rows + rows > self._max_rows

    def admit(self, rows: int, runs: int) -> "Admission":
        """Take up so many rows in so many runs; raises Overloaded where there are too many already.

        Entering the admission counts them until it is left, so that they count while the user's state is read, too.
        """
        if self.over(rows):
            raise Overloaded(
                f"{self._rows} candidates wait for the model, and with {rows} more they would be over {self._max_rows}",
                self.wait_s,
            )
        return Admission(self, rows, runs)

    async def run(self, rows: int, deadline: float, work: Callable[[], T]) -> T | None:
        """What `work` gives; None as soon as it is known that it cannot be done by the deadline, and then it is not begun."""
        loop = asyncio.get_running_loop()
        job = _Job(rows, deadline, work, loop.create_future())
        self._jobs.append(job)
        self._earliest = min(self._earliest, self._latest(job))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next)
        return await job.result

    def _next(self) -> None:
        began = time.perf_counter()
        if began > self._earliest or began > self._latest(self._jobs[0]):
            self._give_up(began)
        while self._jobs:
            job = self._jobs.popleft()
            # Given up, or whoever waited for it has left.
            if not job.result.done():
                self._do(job, began)
                break
        self._scheduled = bool(self._jobs)
        if self._scheduled:
            # Not at once: what has arrived meanwhile, health checks among it, is seen to first.
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._earliest = math.inf

    def _give_up(self, now: float) -> None:
        """Tell all that cannot be done in time."""
        left = [job for job in self._jobs if not job.result.done()]
        probe = self._given_up >= PROBE_AFTER
        gave_up = False
        for job in left:
            if now <= self._latest(job):
                continue
            if probe and now <= job.deadline:
                # It has still time by the clock, and is run to learn how long that takes.
                probe = False
                continue
            job.result.set_result(None)
            gave_up = True
        self._given_up += gave_up
        kept = [job for job in left if not job.result.done()]
        if not kept:
            self._busy_since = None
        self._jobs = deque(kept)
        self._earliest = min(map(self._latest, kept), default=math.inf)

    def _latest(self, job: _Job[object]) -> float:
        """When it must begin."""
        return job.deadline - self.seconds(job.rows)

    def _do(self, job: _Job[object], began: float) -> None:
        # With what came between it and the run before: under load, requests that are read and answers that are written.
        since = began if self._busy_since is None else self._busy_since
        self._busy_since = None
        self._given_up = 0
        try:
            job.result.set_result(job.work())
        except Exception as error:  # noqa: BLE001 -- it belongs to the request, and the next job must run
            job.result.set_exception(error)
            return
        ended = time.perf_counter()
        self.done += 1
        if self._jobs:
            self._busy_since = ended
        self._recent.append((ended - since) / (job.rows + ROWS_OF_A_RUN))
        self._seconds_per_row = sorted(self._recent)[len(self._recent) // 2]

    def count(self, rows: int, runs: int) -> None:
        """Count in what is admitted, or out what is done."""
        self._rows += rows
        self._runs += runs


class Admission:
    """Rows that are counted while it is entered."""

    def __init__(self, compute: Compute, rows: int, runs: int) -> None:
        self._compute = compute
        self._rows, self._runs = rows, runs

    def __enter__(self) -> None:
        self._compute.count(self._rows, self._runs)

    def __exit__(self, *_: object) -> None:
        self._compute.count(-self._rows, -self._runs)
