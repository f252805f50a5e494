"""Work that goes on beside requests for as long as the service runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

log = structlog.get_logger()

STOP_S = 5.0
"""What is under way when the service stops, and the last run, get so long together."""


@contextlib.asynccontextmanager
async def every(
    seconds: float, work: Callable[[], Awaitable[None]], name: str, last: bool = True, stop_s: float = STOP_S
) -> AsyncIterator[None]:
    """The work every so many seconds while entered, and once more on leaving where a `last` run is wanted.

    A run that fails is logged, and the next one comes all the same. On leaving, a run under way ends before the last one begins;
    what of both is not over after `stop_s` seconds is cancelled.
    """
    stopping = asyncio.Event()
    task = asyncio.create_task(_again_and_again(seconds, work, name, last, stopping), name=name)
    try:
        yield
    finally:
        stopping.set()
        try:
            _, late = await asyncio.wait({task}, timeout=stop_s)
            if late:
                log.warning("work_cut_off", work=name, after_s=stop_s)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _again_and_again(
    seconds: float, work: Callable[[], Awaitable[None]], name: str, last: bool, stopping: asyncio.Event
) -> None:
    told: str | None = None
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), seconds)
        over = stopping.is_set()
        if over and not last:
            return
        try:
            await work()
        except Exception as error:
            # Whatever it is: nobody else would begin the loop again. Of a trouble that lasts, one line.
            trouble = f"{type(error).__name__}: {error}"
            if trouble != told:
                log.exception("work_failed", work=name, reason=trouble)
            told = trouble
        else:
            told = None
        if over:
            return
