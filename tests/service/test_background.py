"""Work beside requests: it outlives its failures, and ends in order."""

import asyncio
import logging

import pytest
import structlog
from structlog.testing import LogCapture

from srp4ctr_service.background import every

OFTEN_S = 0.001


@pytest.fixture
def told():
    """What is logged, as dicts."""
    before = structlog.get_config()
    capture = LogCapture()
    structlog.configure(
        processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )
    yield capture.entries
    structlog.configure(**before)


def test_work_that_fails_is_done_again_and_each_trouble_is_told_once(told):
    """A lasting trouble is one line; another one, or the same after the work has succeeded, is told anew."""
    troubles = ["full", "full", "gone", None, "gone", "gone"]

    async def scenario():
        over = asyncio.Event()

        async def work():
            if not troubles:
                over.set()
            elif trouble := troubles.pop(0):
                raise OSError(trouble)

        async with every(OFTEN_S, work, "write"):
            await over.wait()

    asyncio.run(scenario())
    assert [(one["work"], one["reason"]) for one in told] == [
        ("write", "OSError: full"),
        ("write", "OSError: gone"),
        ("write", "OSError: gone"),
    ]


@pytest.mark.parametrize("last", [True, False])
def test_a_run_under_way_ends_before_the_last_one(told, last):
    """On leaving nothing is broken off, and where a last run is wanted there is exactly one."""
    done = []

    async def scenario():
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def work():
            begun.set()
            await go_on.wait()
            done.append("run")

        async def leave():
            async with every(OFTEN_S, work, "write", last=last):
                await begun.wait()

        leaving = asyncio.create_task(leave())
        await begun.wait()
        await asyncio.sleep(10 * OFTEN_S)
        assert not leaving.done()
        go_on.set()
        await leaving

    asyncio.run(scenario())
    assert done == ["run"] * (1 + last)
    assert not told


def test_while_nothing_runs_leaving_does_the_work_once():
    """What came since the last run is not lost."""
    done = []

    async def work():
        done.append("run")

    async def scenario():
        async with every(3600, work, "write"):
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert done == ["run"]


def test_work_that_does_not_end_is_cut_off(told):
    """A stop does not wait for ever, and says what it broke off."""
    ended = []

    async def scenario():
        begun = asyncio.Event()

        async def work():
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cut off")

        async with every(OFTEN_S, work, "write", stop_s=10 * OFTEN_S):
            await begun.wait()

    asyncio.run(scenario())
    assert ended == ["cut off"]
    assert [(one["event"], one["work"]) for one in told] == [("work_cut_off", "write")]
