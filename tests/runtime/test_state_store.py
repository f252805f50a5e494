"""States and the active version in a real Redis."""

import asyncio
import threading
import time

import pytest

from srp4ctr.contract.errors import ConfigError, StoreError, StoreUnavailable, VersionIncomplete
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.async_state_store import AsyncStateStore
from srp4ctr.runtime.redis_client import connect, connect_async
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import ANNOUNCED_S, StateStore

SETTINGS = StoreSettings(redis_read_timeout_ms=200)
KEYS = Keys("test")
ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def store(redis_server):
    with connect(SETTINGS, redis_server.url) as client:
        yield StateStore(client, KEYS)


def test_states_come_back_as_written(store):
    """Each user's bytes come back under that user and version, and None where there are none."""
    users = ["1", "a b", "ключ", "p{x}:y"]
    assert store.put_many("v1", [(user, user.encode() + b"\0\xff") for user in users]) == len(users)
    assert store.get_many("v1", [*users, "nobody"]) == [*(user.encode() + b"\0\xff" for user in users), None]
    assert store.get_many("v2", users) == [None] * len(users)


def test_states_are_written_over(store):
    """Publishing again replaces a user's state."""
    store.put_many("v1", [("1", b"old")])
    store.put_many("v1", [("1", b"new")])
    assert store.get_many("v1", ["1"]) == [b"new"]


def test_unpublished_version_is_not_activated(store):
    """A version that was not published to the end is refused, and what is active stays so."""
    store.put_many("v1", [("1", b"state")])
    with pytest.raises(VersionIncomplete, match="srp4ctr publish"):
        store.activate("v1", ONE)
    assert store.active() is None


def test_version_published_from_another_model_is_not_activated(store):
    """A version whose states another model wrote is refused."""
    store.mark_published("v1", ONE, 1)
    with pytest.raises(VersionIncomplete, match="222222222222"):
        store.activate("v1", TWO)


def test_a_version_that_is_needed_is_not_removed(store):
    """Neither the active one, nor the one before it, nor the one that is about to be; and what is removed is not activated."""
    for version in ("a", "b", "c", "d"):
        store.mark_published(version, ONE, 0)
    store.activate("a", ONE)
    store.activate("b", ONE)
    store.announce("c")
    for version in ("a", "b", "c"):
        with pytest.raises(StoreError, match="not removed"):
            store.drop(version)
    store.drop("d")
    with pytest.raises(VersionIncomplete):
        store.activate("d", ONE)
    # Whoever was cut off finds it until it is struck off the list.
    assert store.versions() == ["a", "b", "c", "d"]
    store.strike("d")
    assert store.versions() == ["a", "b", "c"]


def test_what_a_killed_activation_announced_ends(store, redis_server):
    """Unless it is announced again, a version is kept fresh and from being removed for a limited time only."""
    store.mark_published("c", ONE, 0)
    store.announce("c")
    with redis_server.client() as client:
        assert 0 < client.ttl(KEYS.upcoming()) <= ANNOUNCED_S
        client.expire(KEYS.upcoming(), 100)
        store.announce("c")
        assert client.ttl(KEYS.upcoming()) > 100
        client.pexpire(KEYS.upcoming(), 1)
    time.sleep(0.05)
    assert store.upcoming() is None
    store.drop("c")
    assert store.published("c") is None


@pytest.mark.parametrize(("states", "histories"), [("5", ""), ("5", "6")])
def test_states_must_not_go_before_histories(monkeypatch, states, histories):
    """Settings by which a user whose history is there would lose the state are refused, and both are named."""
    monkeypatch.setenv("SRP4CTR_STATE_TTL_DAYS", states)
    monkeypatch.setenv("SRP4CTR_HISTORY_TTL_DAYS", histories)
    with pytest.raises(ConfigError, match=r"SRP4CTR_STATE_TTL_DAYS is 5, and SRP4CTR_HISTORY_TTL_DAYS"):
        read_settings(StoreSettings)
    monkeypatch.setenv("SRP4CTR_HISTORY_TTL_DAYS", states)
    assert read_settings(StoreSettings).state_ttl_s == 5 * 86_400


def test_activation_keeps_the_previous_version(store):
    """The pointer names the version, its fingerprint and the version before it."""
    store.mark_published("v1", ONE, 10)
    store.mark_published("v2", TWO, 20)
    assert store.published("v2").users == 20
    assert store.activate("v1", ONE).previous is None
    active = store.activate("v2", TWO)
    assert (active.version, active.fingerprint, active.previous) == ("v2", TWO, "v1")
    assert store.active() == active


def test_activating_again_keeps_the_way_back(store):
    """A rerun of activate changes nothing: previous stays the version before."""
    store.mark_published("v1", ONE, 10)
    store.mark_published("v2", TWO, 20)
    store.activate("v1", ONE)
    first = store.activate("v2", TWO)
    assert store.activate("v2", TWO) == first


def test_activating_another_model_of_that_name(store):
    """A version that was published again from another model is activated with it, and the way back stays."""
    for version, fingerprint in (("v1", ONE), ("v2", ONE), ("v2", TWO)):
        store.mark_published(version, fingerprint, 10)
        active = store.activate(version, fingerprint)
    assert (active.version, active.fingerprint, active.previous) == ("v2", TWO, "v1")


def test_activations_at_once_leave_one_whole_pointer(store, redis_server):
    """Of many activations at once one wins, and version, fingerprint and previous belong together."""
    prints = {f"v{i}": str(i) * 64 for i in range(4)}
    for version, fingerprint in prints.items():
        store.mark_published(version, fingerprint, 1)

    def switch(version, fingerprint):
        with connect(SETTINGS, redis_server.url) as client:
            for _ in range(20):
                StateStore(client, KEYS).activate(version, fingerprint)

    threads = [threading.Thread(target=switch, args=pair) for pair in prints.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    active = store.active()
    assert prints[active.version] == active.fingerprint
    assert active.previous in prints
    assert active.previous != active.version


def test_lost_redis_is_unavailable(store, redis_server):
    """Every call on a Redis that is gone ends in StoreUnavailable."""
    redis_server.kill()
    calls = [
        lambda: store.put_many("v1", [("1", b"x")]),
        lambda: store.get_many("v1", ["1"]),
        lambda: store.mark_published("v1", ONE, 1),
        lambda: store.published("v1"),
        lambda: store.activate("v1", ONE),
        store.active,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable):
            call()


def test_service_sees_the_pointer_of_the_jobs(store, redis_server):
    """The asynchronous store sees the version that the synchronous one activated."""
    store.mark_published("v1", ONE, 1)
    active = store.activate("v1", ONE)

    async def scenario():
        async with connect_async(SETTINGS, redis_server.url) as client:
            reader = AsyncStateStore(client, KEYS)
            await reader.ping(1.0)
            assert await reader.active(1.0) == active

    asyncio.run(scenario())


def test_busy_loop_is_not_a_late_answer(redis_server):
    """When our own event loop stalls for longer than the limit, an answer that has come meanwhile is taken."""

    async def scenario():
        async with connect_async(SETTINGS, redis_server.url) as client:
            reader = AsyncStateStore(client, KEYS)
            await reader.ping(5.0)
            for read in (reader.active(0.5), reader.ping(0.5)):
                task = asyncio.create_task(read)
                await asyncio.sleep(0)
                time.sleep(0.7)  # noqa: ASYNC251 -- the stall itself
                await task

    asyncio.run(scenario())
