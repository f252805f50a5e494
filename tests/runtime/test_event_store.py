"""Events on their way to Redis: what becomes of a service whose Redis does not take them."""

import asyncio

import pytest

from srp4ctr.contract.errors import StoreUnavailable
from srp4ctr.contract.events import RawEvent, Retention
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.event_store import AsyncEventStore
from srp4ctr.runtime.redis_client import SERVICE_CONNECTIONS, connect_async
from srp4ctr.runtime.settings import StoreSettings


def event(number):
    """An event that differs from all others by its number."""
    return {"u": [RawEvent(number, f"e-{number}", "i", {})]}


@pytest.mark.parametrize("trouble", ["hangs", "dies"])
def test_events_are_taken_again_when_redis_is_back(redis_server, trouble):
    """However many events are under way when Redis hangs or dies, it takes the next ones when it is back."""

    async def run():
        settings = StoreSettings(redis_url=redis_server.url)
        async with connect_async(settings, redis_server.url) as client:
            store = AsyncEventStore(client, Keys("test"), Retention(8))

            async def record_on_all_connections(limit_s):
                at_once = [store.record(event(1), limit_s) for _ in range(SERVICE_CONNECTIONS)]
                return await asyncio.gather(*at_once, return_exceptions=True)

            for outcome in await record_on_all_connections(5.0):
                assert outcome[0][0] in ("stored", "duplicate")
            redis_server.pause()
            under_way = asyncio.create_task(record_on_all_connections(0.5))
            await asyncio.sleep(0.1)
            if trouble == "dies":
                redis_server.kill()
            for outcome in await under_way:
                assert isinstance(outcome, StoreUnavailable)
            if trouble == "dies":
                redis_server.start()
            else:
                redis_server.resume()
            assert await store.record(event(2), 5.0) == [["stored"]]

    asyncio.run(run())
