"""Processes that chaos keeps running: what ends by itself is told from what was killed."""

import asyncio
import os
import signal

import numpy as np
import psutil

from srp4ctr_loadtest.chaos.processes import Service

COMMAND = ["bash", "-c", "sleep 300 & sleep 300 & sleep 300 & wait"]


def test_a_worker_that_ends_by_itself_is_noticed(tmp_path):
    """And one that was chosen is not, nor those whose supervisor was."""

    async def until(there):
        for _ in range(300):
            if there():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it did not come about")

    async def scenario():
        with (tmp_path / "log").open("wb") as log:
            service = Service(COMMAND, dict(os.environ), log, np.random.default_rng(0))
            kept = asyncio.create_task(service.keep())
            await until(lambda: len(service.children()) == 3)
            service.look()
            os.kill(service.children()[0].pid, signal.SIGKILL)
            await until(lambda: _running(service) == 2)
            service.look()
            assert service.vanished == 1
            # Chosen by lot: a worker, or the supervisor with all of them.
            while service.kill() is not None and _running(service):
                service.look()
            service.look()
            assert service.vanished == 1
            kept.cancel()
            await asyncio.gather(kept, return_exceptions=True)

    asyncio.run(scenario())


def _running(service):
    return sum(child.status() != psutil.STATUS_ZOMBIE for child in service.children())
