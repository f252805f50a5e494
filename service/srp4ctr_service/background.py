"""Work that goes on beside requests for as long as the service runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """The work as a task of that name while entered; cancelled on leaving."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def every(seconds: float, work: Callable[[], Awaitable[None]], name: str) -> AsyncIterator[None]:
    """The work every so many seconds while entered, and once more on leaving."""

    async def again_and_again() -> None:
        while True:
            await asyncio.sleep(seconds)
            await work()

    try:
        async with in_background(again_and_again(), name):
            yield
    finally:
        await work()
