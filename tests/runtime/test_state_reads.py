"""Reading states over one shared connection, and keeping what was read for as long as it is true."""

import asyncio
import contextlib
import time

import pytest
import uvloop

from srp4ctr.contract.errors import StateCorrupt, StoreUnavailable
from srp4ctr.contract.events import Retention
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.event_store import AsyncEventStore, EventStore
from srp4ctr.runtime.near_cache import NearCache
from srp4ctr.runtime.redis_client import connect_async, read_pool
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_reads import Limits, StateReads

KEYS = Keys()
LIMITS = Limits(read_s=5.0, connect_s=5.0, probe_every_s=0.01)


@pytest.fixture
def client(redis_server):
    """A plain client, for what others write."""
    with redis_server.client() as client:
        yield client


def run(redis_server, scenario, limits=LIMITS, entries=100, keep_s=60.0, by=asyncio.run):
    """What the scenario gives with fresh reads."""

    async def opened():
        cache = NearCache(entries, keep_s)
        reads = _Counting(read_pool(StoreSettings(), redis_server.url), limits, cache, KEYS.forgets())
        async with contextlib.aclosing(_Closing(reads)):
            return await scenario(reads)

    return by(opened())


class _Counting(StateReads):
    def __init__(self, *parts):
        super().__init__(*parts, self.count)
        self.hits = self.misses = 0

    def count(self, hit):
        self.hits += hit
        self.misses += not hit


class _Closing:
    def __init__(self, reads):
        self.aclose = reads.close


async def value(reads, key):
    return (await reads.get(key, key + ":n")).value


async def eventually(condition):
    """Wait until the condition holds."""
    give_up_at = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.005)


def test_every_read_gets_its_own_answer(redis_server, client):
    """Many reads at once, of values of all sizes and of none, are answered each with its own."""
    values = {f"k{i}": bytes([i % 256]) * (i * 37) for i in range(300)}
    client.mset(values)

    async def scenario(reads):
        asked = [*values, "nothing"] * 2
        return dict(zip(asked, await asyncio.gather(*(value(reads, key) for key in asked)), strict=True))

    assert run(redis_server, scenario, entries=0) == values | {"nothing": None}


def test_what_was_read_is_kept_until_it_changes(redis_server, client):
    """A value, and that there is none, is read once; after anybody wrote or deleted it, the new one is read."""
    client.set("a", "1")

    async def scenario(reads):
        for _ in range(3):
            assert (await value(reads, "a"), await value(reads, "b")) == (b"1", None)
        assert (reads.hits, reads.misses) == (4, 2)
        client.set("a", "2")
        client.set("b", "3")
        await eventually(lambda: is_now(reads, a=b"2", b=b"3"))
        client.delete("a")
        await eventually(lambda: is_now(reads, a=None, b=b"3"))
        client.flushall()
        await eventually(lambda: is_now(reads, a=None, b=None))

    run(redis_server, scenario)


async def is_now(reads, **wanted):
    return {key: await value(reads, key) for key in wanted} == wanted


def test_a_write_between_the_answer_and_who_waits_for_it_is_noticed(redis_server, client):
    """A notice that arrives together with the answer that it is about is not lost: nothing outdated is kept."""
    client.set("a", "0")

    async def scenario(reads):
        await reads.get("other", "other:n")
        for turn in range(1, 50):
            task = asyncio.create_task(reads.get("a", "a:n"))
            await asyncio.sleep(0)
            # Redis answers and is written to while this process looks at neither.
            time.sleep(0.001)  # noqa: ASYNC251 -- the stall itself
            client.set("a", str(turn))
            await task
            await eventually(lambda turn=turn: is_now(reads, a=str(turn).encode()))

    run(redis_server, scenario)


@pytest.mark.parametrize("gone", [False, True])
def test_what_this_process_has_changed_is_read_anew(redis_server, client, gone):
    """Without waiting for Redis to tell of it, under all versions, and whether it was kept or is just being read."""
    client.mset({"v1": "0", "v2": "0", "n": "0"})

    async def scenario(reads):
        change = reads.forget if gone else reads.outdate
        for key in ("v1", "v2"):
            await reads.get(key, "n")
        await reads.get("other", "other:n")
        client.set("n", "1")
        change(["n"])
        # At once: the first answer comes with the notice.
        found = await asyncio.gather(*(reads.get(key, "n") for key in ("v1", "v2")))
        assert [one.beside for one in found] == [b"1", b"1"]
        change(["n"])
        under_way = [asyncio.create_task(reads.get(*keys)) for keys in (("v1", "n"), ("b", "b:n"))]
        await asyncio.sleep(0)
        change(["n"])
        await asyncio.gather(*under_way)
        hits, misses = reads.hits, reads.misses
        for keys in (("v1", "n"), ("b", "b:n"), ("other", "other:n")):
            await reads.get(*keys)
        assert (reads.hits - hits, reads.misses - misses) == (2, 1)

    run(redis_server, scenario)


def test_who_acts_while_redis_is_away_stays_known(redis_server, client):
    """What was read before is the last known after an event, and nothing is after the user was forgotten."""
    client.set("a", "1")

    async def scenario(reads):
        await value(reads, "a")
        drop_reads(client)
        # Over another connection.
        assert await value(reads, "other") is None
        reads.outdate(["a:n"])
        assert reads.last_known("a").value == b"1"
        reads.forget(["a:n"])
        assert reads.last_known("a") is None
        # The same while what was read is not in doubt.
        await value(reads, "a")
        reads.outdate(["a:n"])
        assert reads.last_known("a").value == b"1"
        reads.forget(["a:n"])
        assert reads.last_known("a") is None

    run(redis_server, scenario)


def test_nothing_is_kept_of_a_connection_that_was_left(redis_server, client):
    """What Redis sent behind an error that ends the connection is of no use: it would not tell when that changes."""
    client.mset({"a": "1", "b": "1"})
    client.execute_command("ACL SETUSER", "default", "resetkeys", "~b*")

    async def scenario(reads):
        await reads.get("b0", "b0:n")
        # Redis finds both, and answers them in one piece.
        redis_server.pause()
        under_way = [asyncio.create_task(value(reads, key)) for key in ("a", "b")]
        await asyncio.sleep(0)
        redis_server.resume()
        for found in await asyncio.gather(*under_way, return_exceptions=True):
            assert isinstance(found, StoreUnavailable)
        client.set("b", "2")
        await asyncio.sleep(2 * LIMITS.probe_every_s)
        assert await value(reads, "b") == b"2"

    run(redis_server, scenario)


def test_what_is_kept_is_bounded(redis_server, client):
    """Of more values than the limit those asked for last are kept, and none for longer than its time."""
    client.mset({str(i): i for i in range(5)})

    async def scenario(reads):
        for key in "01203":
            await reads.get(key, key + ":n")
        assert (reads.hits, reads.misses) == (1, 4)
        await reads.get("0", "0:n")
        await reads.get("1", "1:n")
        assert (reads.hits, reads.misses) == (2, 5)

    run(redis_server, scenario, entries=3)

    async def briefly(reads):
        await reads.get("0", "0:n")
        await asyncio.sleep(0.02)
        await reads.get("0", "0:n")
        assert (reads.hits, reads.misses) == (0, 2)
        assert reads.last_known("1") is None

    run(redis_server, briefly, keep_s=0.01)


def test_nothing_is_trusted_over_a_new_connection(redis_server, client):
    """Notices end with their connection: what was kept is read again, and until then it is only the last known."""
    client.set("a", "1")

    async def scenario(reads):
        assert await value(reads, "a") == b"1"
        client.set("b", "1")
        assert await value(reads, "b") == b"1"
        drop_reads(client)
        client.set("a", "2")
        await eventually(lambda: is_now(reads, a=b"2"))
        assert reads.last_known("b").value == b"1"

    run(redis_server, scenario)


def drop_reads(client):
    """End the connections over which states are read."""
    for one in client.client_list():
        if one["cmd"] == "get":
            # Not by its address: over a Unix socket this client has the same.
            client.client_kill_filter(_id=one["id"])


@pytest.mark.parametrize("meanwhile", [True, False])
def test_who_was_forgotten_is_not_the_last_known(redis_server, client, meanwhile):
    """A state that Redis no longer tells of is dropped when a user is forgotten, or was while there was no connection."""
    client.set("a", "1")
    store = EventStore(client, KEYS, Retention(8))

    async def is_dropped(reads):
        return reads.last_known("a") is None

    async def scenario(reads):
        for turn in range(2):
            assert await value(reads, "a") == b"1"
            drop_reads(client)
            if meanwhile:
                store.forget("somebody", [])
            # Over another connection.
            assert await value(reads, f"b{turn}") is None
            if not meanwhile:
                assert reads.last_known("a").value == b"1"
                async with connect_async(StoreSettings(), redis_server.url) as other:
                    await AsyncEventStore(other, KEYS, Retention(8)).forget("somebody", 5.0)
            await eventually(lambda: is_dropped(reads))
            assert int(client.get(KEYS.forgets())) == turn + 1

    run(redis_server, scenario)


def test_who_is_forgotten_while_a_connection_is_made_is_not_the_last_known(redis_server, client, monkeypatch):
    """Redis tells of that once, and before whoever listens for it does; nothing is told of it later either."""
    client.set("a", "1")
    store = EventStore(client, KEYS, Retention(8))
    first_look = StateReads._read_forgets

    async def forgets_then(self, connection):
        found = await first_look(self, connection)
        if self.last_known("a") is not None:
            store.forget("somebody", [])
            # The notice is read with this answer.
            await connection.send_command("PING")
            await connection.read_response()
        return found

    async def is_dropped(reads):
        return reads.last_known("a") is None

    async def scenario(reads):
        await value(reads, "a")
        drop_reads(client)
        monkeypatch.setattr(StateReads, "_read_forgets", forgets_then)
        assert await value(reads, "b") is None
        await eventually(lambda: is_dropped(reads))

    run(redis_server, scenario)


def test_nothing_is_trusted_over_a_connection_that_died_silently(redis_server, client):
    """Where nobody would say what changes, what is kept is given up soon, and taken again when Redis answers."""
    client.set("k", "1")
    limits = Limits(read_s=0.1, connect_s=0.1, probe_every_s=0.01, silent_s=0.05)

    async def scenario(reads):
        assert await value(reads, "k") == b"1"
        assert (await value(reads, "k"), reads.hits) == (b"1", 1)
        redis_server.pause()
        try:

            async def given_up():
                try:
                    await value(reads, "k")
                except StoreUnavailable:
                    return True
                return False

            await eventually(given_up)
        finally:
            redis_server.resume()
        client.set("k", "2")

        async def changed():
            with contextlib.suppress(StoreUnavailable):
                return await value(reads, "k") == b"2"
            return False

        await eventually(changed)

    run(redis_server, scenario, limits)


def test_a_closed_connection_is_opened_again(redis_server, client):
    """When Redis has closed the connection, the next read opens another and is answered."""

    async def scenario(reads):
        for turn in range(5):
            client.set("a", str(turn))
            assert await value(reads, "a") == str(turn).encode()
            client.client_kill_filter(_type="normal", skipme=True)

    run(redis_server, scenario, entries=0)


def test_key_of_another_type_spoils_no_other(redis_server, client):
    """Of many keys read at once, one that holds no bytes is corrupt, and the others are read."""
    client.mset({"1": "one", "3": "three"})
    client.lpush("2", "x")

    async def scenario(reads):
        return await asyncio.gather(*(value(reads, key) for key in "123"), return_exceptions=True)

    one, two, three = run(redis_server, scenario)
    assert (one, three) == (b"one", b"three")
    assert isinstance(two, StateCorrupt)


def test_given_up_read_does_not_spoil_the_next(redis_server, client):
    """After a read that ran past its limit, the next ones get their own answers and not the late one."""
    client.mset({str(i): str(i) for i in range(50)})

    async def scenario(reads):
        assert await value(reads, "7") == b"7"
        redis_server.pause()
        with pytest.raises(StoreUnavailable, match="no answer within 20 ms"):
            await reads.get("1", "1:n")
        redis_server.resume()
        got = await asyncio.gather(*(value(reads, str(i)) for i in range(50)))
        assert got == [str(i).encode() for i in range(50)]

    run(redis_server, scenario, Limits(0.02, 5.0, 0.01), entries=0)


def test_busy_loop_is_not_a_late_answer(redis_server, client):
    """When our own event loop stalls for longer than the limit, an answer that has come meanwhile is taken."""
    client.set("1", "state")

    async def scenario(reads):
        await reads.get("0", "0:n")
        task = asyncio.create_task(value(reads, "1"))
        await asyncio.sleep(0)
        time.sleep(0.7)  # noqa: ASYNC251 -- the stall itself
        return await task

    assert run(redis_server, scenario, Limits(0.5, 5.0, 0.01)) == b"state"


@pytest.mark.parametrize("limit_ms", [5, 12])
def test_no_read_is_given_up_before_its_limit(redis_server, limit_ms):
    """A Redis that hangs has all of the limit, also where its parts are less than the event loop's clock can count."""

    async def scenario(reads):
        await value(reads, "first")
        redis_server.pause()
        began = time.perf_counter()
        with pytest.raises(StoreUnavailable):
            await value(reads, "second")
        return time.perf_counter() - began

    limits = Limits(read_s=limit_ms / 1000, connect_s=5.0, probe_every_s=0.01)
    try:
        # Less a millisecond, as the clock may have begun one before.
        assert run(redis_server, scenario, limits, by=uvloop.run) >= (limit_ms - 1) / 1000
    finally:
        redis_server.resume()


def test_refusal_is_unavailable(redis_server, client):
    """An error that is about the server and not about a key, such as a missing permission, is an outage."""
    client.execute_command("ACL", "SETUSER", "default", "-get")
    with pytest.raises(StoreUnavailable, match="permissions"):
        run(redis_server, lambda reads: reads.get("1", "1:n"))


def test_without_notices_nothing_is_kept(redis_server, client):
    """Where Redis may not tell what changes, every read is answered by Redis."""
    client.set("a", "1")
    client.execute_command("ACL", "SETUSER", "default", "-client")

    async def scenario(reads):
        assert await value(reads, "a") == b"1"
        assert await value(reads, "a") == b"1"
        assert (reads.hits, reads.misses) == (0, 2)

    run(redis_server, scenario)
