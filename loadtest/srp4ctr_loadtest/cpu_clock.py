"""CPU that another process has used, by the kernel's own clock of it: psutil's figures come in hundredths of a second."""

import time

import psutil

_WHOLE_PROCESS = 2
"""CPUCLOCK_SCHED of the Linux kernel: what the scheduler has counted, of all threads, those that have ended among them."""


def cpu_seconds(pid: int) -> float:
    """CPU seconds of the process since it began, to the nanosecond; raises psutil.NoSuchProcess where it has ended."""
    try:
        # As clock_getcpuclockid(3) makes a clock's id of a process's.
        return time.clock_gettime((~pid << 3) | _WHOLE_PROCESS)
    except OSError as error:
        raise psutil.NoSuchProcess(pid) from error
