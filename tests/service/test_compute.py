"""The model's turn: what is known of how long runs take, and who learns it from whom."""

import asyncio
import time

import pytest

from srp4ctr_service.compute import PROBE_AFTER, Compute

RUN_S = 0.02


@pytest.fixture
def compute():
    """One that has been told nothing yet."""
    return Compute(10_000)


async def run(compute, deadline_s, took_s=RUN_S):
    """Whether a job of one row is run that takes so long and has so much time, or given up."""
    with compute.admit(1, 1):
        deadline = time.perf_counter() + deadline_s
        return await compute.run(1, deadline, lambda: time.sleep(took_s) or True)


def test_jobs_that_nobody_could_do_in_time_teach_nothing(compute):
    """However many come whose time is over: what a run takes is what it was, and jobs with too little time are given up."""

    async def scenario():
        assert [await run(compute, 10.0) for _ in range(3)] == [True] * 3
        known_s = compute.seconds(1)
        assert known_s > 0.9 * RUN_S
        for _ in range(200):
            assert await run(compute, -1.0) is None
        assert compute.seconds(1) == known_s

    asyncio.run(scenario())


def test_a_job_that_has_too_little_time_is_given_up_each_time(compute):
    """But for one in some, by which it is seen whether runs still take so long."""

    async def scenario():
        await run(compute, 10.0)
        return [await run(compute, RUN_S / 2) for _ in range(3 * PROBE_AFTER)]

    done = asyncio.run(scenario())
    assert done.count(True) == 2


def test_one_slow_run_says_nothing_of_the_next(compute):
    """What holds the process up now and then is not what its runs take."""

    async def scenario():
        for _ in range(4):
            await run(compute, 10.0)
        await run(compute, 10.0, took_s=20 * RUN_S)
        return [await run(compute, 5 * RUN_S) for _ in range(3)]

    assert asyncio.run(scenario()) == [True] * 3
