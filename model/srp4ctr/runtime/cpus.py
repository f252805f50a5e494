"""How many CPUs this process may use."""

import contextlib
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by the CPU quota of its container (cgroup v2 and v1)."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = (
                (CGROUP / "cpu" / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period")
            )
        # "max" and -1 stand for no limit.
        if float(quota) > 0:
            cpus = min(cpus, max(1, int(float(quota) / float(period))))
    return cpus
