"""The active version in Redis as the service asks for it, within limits that a busy event loop does not shorten.

Raises StoreUnavailable when Redis does not answer within its limits, and StoreError when the pointer to the active version is no
such thing.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import redis.asyncio

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.redis_client import store_errors
from srp4ctr.runtime.version_records import Active, active_of, name_of

TICKS = 25
"""In so many steps the limit of a read passes."""

T = TypeVar("T")


class AsyncStateStore:
    """What the service reads from Redis; each call has the caller's limit, in seconds."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def active(self, limit_s: float) -> Active | None:
        """The active version; None before the first activation."""
        with store_errors():
            return active_of(await within(limit_s, self._client.hgetall(self._keys.active())))

    async def upcoming(self, limit_s: float) -> tuple[str, str] | None:
        """The version that is about to be active, and its fingerprint."""
        with store_errors():
            asked: Any = self._client.get(self._keys.upcoming())
            version = name_of(await within(limit_s, asked))
            if version is None:
                return None
            asked = self._client.hget(self._keys.published(version), "fingerprint")
            fingerprint = name_of(await within(limit_s, asked))
        return None if fingerprint is None else (version, fingerprint)

    async def items_revision(self, version: str, limit_s: float) -> str | None:
        """The revision of the version's item table to take; None for the bundle's own."""
        with store_errors():
            found: Any = await within(limit_s, self._client.get(self._keys.items(version)))
        return name_of(found)

    async def ping(self, limit_s: float) -> None:
        """Return when Redis answers."""
        with store_errors():
            await within(limit_s, self._client.ping())


async def within(limit_s: float, work: Awaitable[T]) -> T:
    """What the work gives; TimeoutError where Redis takes longer than `limit_s`.

    The limit is for Redis and not for this process: however long a busy event loop lets a tick last, it counts as one
    only, and the loop takes in what has arrived before it counts the next.
    """
    task = asyncio.ensure_future(work)
    try:
        for _ in range(TICKS):
            await asyncio.wait((task,), timeout=limit_s / TICKS)
            if task.done():
                return task.result()
    finally:
        if not task.done():
            task.cancel()
            # By then its connection is closed, so that nobody else gets the late answer.
            await asyncio.gather(task, return_exceptions=True)
    raise TimeoutError(f"no answer within {1000 * limit_s:g} ms")
