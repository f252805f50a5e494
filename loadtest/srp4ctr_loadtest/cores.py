"""Which core this process, and what it starts, runs on."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on that core alone; processes that are started meanwhile stay there."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
