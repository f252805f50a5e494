"""Events on their way to Redis: what becomes of a service whose Redis does not take them."""

import asyncio
import re

import pytest

from srp4ctr.contract.errors import StoreError, StoreUnavailable
from srp4ctr.contract.events import RawEvent, Retention, pack_event, unpack_history
from srp4ctr.contract.keys import Keys, partition
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.event_store import FORGOTTEN_S, AsyncEventStore, Counted, EventStore
from srp4ctr.runtime.redis_client import SERVICE_CONNECTIONS, connect, connect_async
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import FORGOTTEN


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


@pytest.mark.parametrize("users", [1, 3])
def test_events_are_taken_by_a_redis_that_has_lost_its_scripts(redis_server, users):
    """Of each user of a request once, in the order of the users, whether they are one or several."""

    async def run():
        async with connect_async(StoreSettings(redis_url=redis_server.url), redis_server.url) as client:
            store = AsyncEventStore(client, Keys("test"), Retention(8))
            for number in range(2):
                await client.script_flush()
                new = {f"u-{user}": [RawEvent(number, f"e-{number}", "i", {})] for user in range(users)}
                sent = new | {"u-0": [*new["u-0"], *new["u-0"]]}
                assert await store.record(sent, 5.0) == [["stored", "duplicate"]] + [["stored"]] * (users - 1)
            for user in range(users):
                assert await client.llen(Keys("test").history(f"u-{user}")) == 2

    asyncio.run(run())


class Shelf:
    """One user's history in a Redis of its own."""

    def __init__(self, settings, client, keep=8):
        self.settings = settings
        self.redis = client
        self.keys = Keys("test")
        self.retain(keep)

    def retain(self, keep, ttl_s=0):
        """Keep so many events, so many seconds after the last, 0 for ever."""
        self.retention = Retention(keep, ttl_s)
        self.jobs = EventStore(self.redis, self.keys, self.retention)

    def left_s(self):
        """Seconds that the history and its count have left to live; -1 for ever, -2 where there is none."""
        return [self.redis.ttl(key) for key in (self.keys.history("u"), self.keys.sequence("u"))]

    def record(self, *events):
        """Have these events acknowledged; gives what became of each."""

        async def run():
            async with connect_async(self.settings, self.settings.redis_url) as client:
                return await AsyncEventStore(client, self.keys, self.retention).record({"u": events}, 5.0)

        return asyncio.run(run())[0]

    def seed(self, *events):
        """Store a snapshot; gives how many acknowledged events a state of it alone lacks."""
        (seeded,) = self.jobs.seed([("u", b"\n".join(map(pack_event, events)))])
        counted = self.redis.get(self.keys.sequence("u"))
        return 0 if counted is None else Counted.read(counted).behind(seeded.sequence)

    def events(self):
        """What is stored, in its order."""
        return unpack_history(self.redis.lrange(self.keys.history("u"), 0, -1))

    def history(self):
        """Items in their order, with their events' ids."""
        return [(one.item_id, one.event_id) for one in self.events()]


@pytest.fixture
def shelf(redis_server):
    settings = StoreSettings(redis_url=redis_server.url)
    with connect(settings, redis_server.url) as client:
        yield Shelf(settings, client)


def of(time_ms, item, event_id="", **features):
    """An event; without an id it is a snapshot's."""
    return RawEvent(time_ms, event_id, item, features)


def test_an_event_that_a_snapshot_has_too_counts_once(shelf):
    """Sent, in the snapshot, and sent again: one event, which a state of the snapshot has. Snapshots may have whole seconds."""
    sent = of(7_450, "b", "e-1", rating=4)
    assert shelf.record(sent) == ["stored"]
    assert shelf.seed(of(5_000, "a"), of(7_000, "b", rating=4), of(9_000, "c")) == 0
    assert shelf.history() == [("a", ""), ("b", "e-1"), ("c", "")]
    assert shelf.record(sent) == ["duplicate"]
    # The next snapshot finds it again.
    assert shelf.seed(of(5_000, "a"), of(7_000, "b", rating=4), of(9_000, "c")) == 0
    assert shelf.history() == [("a", ""), ("b", "e-1"), ("c", "")]


def test_an_event_of_a_snapshot_that_is_sent_later_counts_once(shelf):
    """A queue that was slow, or a log that is sent again: it is there already, and has its id from then on.

    The user is refreshed all the same: a state of before the snapshot came lacks it, and would say to lack nothing.
    """
    shelf.seed(of(5_000, "a"), of(7_000, "b"), of(7_000, "c"))
    sent = of(7_450, "b", "e-1", rating=4)
    assert shelf.record(sent, of(7_460, "b", "e-2"), of(9_000, "d", "e-3")) == [
        "duplicate",
        "stored",
        "stored",
    ]
    assert shelf.record(sent) == ["duplicate"]
    assert shelf.history() == [("a", ""), ("c", ""), ("b", "e-1"), ("b", "e-2"), ("d", "e-3")]
    counted = Counted.read(shelf.redis.get(shelf.keys.sequence("u")))
    assert counted.last - counted.first == 3
    assert shelf.redis.xlen(shelf.keys.stream(partition("u"))) == 1
    # It has moved: behind the state there are as many events as it lacks, and publishing the same again changes nothing.
    before = shelf.history()
    shelf.seed(of(5_000, "a"), of(7_000, "b"), of(7_000, "c"))
    assert shelf.history() == before


@pytest.mark.parametrize("damaged", ["sequence", "stream"])
def test_an_event_is_taken_in_whole_or_not_at_all(shelf, damaged):
    """Where a key that it needs holds something else, that is said by its name, and the event is stored when it is mended."""
    key = shelf.keys.sequence("u") if damaged == "sequence" else shelf.keys.stream(partition("u"))
    shelf.redis.set(key, "something else")
    with pytest.raises(StoreError, match=re.escape(key)):
        shelf.record(of(10, "a", "e-1"))
    assert shelf.history() == []
    shelf.redis.delete(key)
    assert shelf.record(of(10, "a", "e-1")) == ["stored"]
    assert shelf.redis.xlen(shelf.keys.stream(partition("u"))) == 1


def test_a_full_redis_takes_no_event_in_part(shelf):
    """Neither a new one nor a late one, and no snapshot; what was there stays."""
    shelf.record(of(10, "a", "e-1"), of(30, "c", "e-2"))
    shelf.redis.config_set("maxmemory", 1)
    for refused in (of(40, "d", "e-3"), of(20, "b", "e-4")):
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            shelf.record(refused)
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        shelf.seed(of(1, "s"))
    assert [item for item, _ in shelf.history()] == ["a", "c"]
    shelf.redis.config_set("maxmemory", 0)
    assert shelf.record(of(20, "b", "e-4")) == ["stored"]


def test_features_that_other_versions_read_outlive_a_snapshot(shelf):
    """A version whose model reads fewer features is published beside one that reads more: histories belong to none."""
    shelf.seed(of(5_000, "a", dwell=1.5, kind="click"), of(5_000, "b", dwell=2.5), of(6_000, "a", dwell=3.5))
    shelf.seed(of(5_000, "a", kind="buy"), of(5_000, "b"), of(6_000, "a"), of(7_000, "new"))
    kept = [dict(one.features) for one in shelf.events()]
    assert kept == [{"kind": "buy", "dwell": 1.5}, {"dwell": 2.5}, {"dwell": 3.5}, {}]
    # And what is new of an event takes the place of what was.
    shelf.seed(of(5_000, "a", dwell=9), of(5_000, "b"))
    assert [dict(one.features) for one in shelf.events()] == [{"dwell": 9, "kind": "buy"}, {"dwell": 2.5}]


def test_an_acknowledged_event_that_a_snapshot_lacks_is_kept_in_its_place(shelf):
    """It came too late for the snapshot, though others after it are there; a state of the snapshot is told to lack it."""
    assert shelf.record(of(6_000, "late", "e-1"), of(20_000, "new", "e-2")) == ["stored", "stored"]
    assert shelf.seed(of(5_000, "a"), of(7_000, "b")) == 2
    assert shelf.history() == [("a", ""), ("late", "e-1"), ("b", ""), ("new", "e-2")]


def test_the_same_item_twice_within_a_second_is_two_events(shelf):
    """Each event of a snapshot stands for one that was sent."""
    shelf.record(of(7_100, "a", "e-1"), of(7_300, "a", "e-2"), of(7_400, "a", "e-3"))
    assert shelf.seed(of(7_000, "a"), of(7_000, "a")) == 1
    assert sorted(event_id for _, event_id in shelf.history()) == ["e-1", "e-2", "e-3"]


def test_a_snapshot_is_cut_at_the_newest(shelf):
    """As many events as are kept, those that were acknowledged among them; what went does not count as lacking."""
    shelf.record(of(1_000, "old", "e-1"), of(50_000, "new", "e-2"))
    assert shelf.seed(*(of(10_000 + number, str(number)) for number in range(9))) == 1
    assert [item for item, _ in shelf.history()] == ["2", "3", "4", "5", "6", "7", "8", "new"]


def test_an_event_goes_where_its_time_says_among_equal_ones(shelf):
    """Events of a snapshot may be alike, byte for byte."""
    a, b = of(10, "a"), of(20, "b")
    shelf.seed(a, b, a._replace(time_ms=30), a._replace(time_ms=30), of(60, "x"))
    assert shelf.record(of(50, "y", "e-1")) == ["stored"]
    assert [item for item, _ in shelf.history()] == ["a", "b", "a", "a", "y", "x"]


def test_what_went_for_newer_ones_does_not_come_back(shelf):
    """Of a full history, an event as old as the oldest is too old: sent again, it would count again and push others out."""
    first = [of(10, f"i{number}", f"e-{number}") for number in range(9)]
    assert shelf.record(*first) == ["stored"] * 8 + ["too_old"]
    assert shelf.record(*first) == ["duplicate"] * 8 + ["too_old"]
    assert len(shelf.history()) == 8


def test_late_events_of_one_request_move_a_history_once(shelf):
    """However many of them there are, the list is written anew once, each event in its place and the oldest gone."""
    shelf.record(*(of(100 + number, f"i{number}", f"e-{number}") for number in range(8)))
    before = shelf.redis.info("commandstats")["cmdstat_rpush"]["calls"]
    late = [of(107, "x", "x"), of(103, "y", "y"), of(200, "z", "z")]
    assert shelf.record(*late) == ["stored"] * 3
    assert shelf.redis.info("commandstats")["cmdstat_rpush"]["calls"] == before + 1
    assert [item for item, _ in shelf.history()] == ["i3", "y", "i4", "i5", "i6", "i7", "x", "z"]
    assert shelf.record(*late) == ["duplicate"] * 3


def test_a_history_and_its_count_go_together(shelf):
    """With a time to live they go that long after the last event that was not known yet, sent or in a snapshot."""
    shelf.retain(8, ttl_s=1000)

    def age():
        for key in (shelf.keys.history("u"), shelf.keys.sequence("u")):
            shelf.redis.expire(key, 100)

    assert shelf.record(of(10_000, "a", "e-1")) == ["stored"]
    assert shelf.left_s() == [1000, 1000]
    age()
    assert shelf.seed(of(1_000, "old")) == 1
    assert shelf.left_s() == [100, 100]
    # Also a count that is made anew.
    shelf.redis.delete(shelf.keys.sequence("u"))
    shelf.seed(of(1_000, "old"))
    assert shelf.left_s() == [100, 100]
    shelf.seed(of(1_000, "old"), of(20_000, "new"))
    assert shelf.left_s() == [1000, 1000]
    age()
    assert shelf.seed(of(1_000, "old"), of(20_000, "new")) == 1
    assert shelf.left_s() == [100, 100]
    shelf.retain(8)
    shelf.seed(of(1_000, "old"), of(20_000, "new"))
    assert shelf.left_s() == [-1, -1]
    # And where they had none.
    shelf.retain(8, ttl_s=1000)
    shelf.seed(of(1_000, "old"), of(20_000, "new"))
    assert shelf.left_s() == [1000, 1000]
    shelf.retain(8)
    assert shelf.record(of(30_000, "b", "e-2")) == ["stored"]
    assert shelf.left_s() == [-1, -1]


def test_events_whose_count_went_are_counted_again(shelf):
    """Where Redis evicted the count of events that the snapshot lacks, a state of the snapshot is still told to lack them."""
    shelf.record(of(10_000, "a", "e-1"), of(20_000, "b", "e-2"))
    shelf.redis.delete(shelf.keys.sequence("u"))
    assert shelf.seed(of(1_000, "old"), of(10_000, "a")) == 1
    assert shelf.history() == [("old", ""), ("a", "e-1"), ("b", "e-2")]
    # And none is made where there is nothing to count.
    shelf.redis.delete(shelf.keys.sequence("u"))
    assert shelf.seed(of(1_000, "old"), of(10_000, "a"), of(20_000, "b")) == 0
    assert shelf.left_s() == [-1, -2]


def test_no_snapshot_brings_a_forgotten_user_back(shelf):
    """What a forgotten user does later is all that is known of the user, until the mark ends; nothing else is told of the id."""
    shelf.seed(of(5_000, "a"))
    shelf.jobs.forget("u", [])
    (mark,) = set(shelf.redis.keys()) - {shelf.keys.forgets().encode()}
    assert 0 < shelf.redis.ttl(mark) <= FORGOTTEN_S
    assert shelf.jobs.seed([("u", pack_event(of(5_000, "a")))]) == [(FORGOTTEN, 0)]
    assert shelf.history() == []
    assert shelf.record(of(9_000, "new", "e-1")) == ["stored"]
    assert shelf.jobs.seed([("u", pack_event(of(5_000, "a")))]) == [(FORGOTTEN, 0)]
    assert shelf.history() == [("new", "e-1")]
    shelf.redis.delete(mark)
    assert shelf.seed(of(5_000, "a")) == 1
    assert shelf.history() == [("a", ""), ("new", "e-1")]


def test_forgetting_removes_dead_letters(shelf):
    """And those of nobody else."""
    streams = ActedStreams(shelf.redis, shelf.keys, "one")
    streams.prepare()
    shelf.record(of(10, "a", "e-1"))
    entries = streams.read(10, None)
    streams.give_up([*entries, entries[0]._replace(user_id="other")], "a reason")
    assert shelf.jobs.forget("u", []) == 3
    number, letters = streams.dead_letters(10)
    assert (number, letters[0].user_id) == (1, "other")


def test_a_damaged_key_stops_forgetting_before_anything_is_gone(shelf):
    """It is told by its name; a user is not half forgotten, whose state would be served as one that lacks nothing."""
    shelf.record(of(10, "a", "e-1"))
    key = shelf.keys.stream(partition("u"))
    shelf.redis.delete(key)
    shelf.redis.set(key, "something else")
    with pytest.raises(StoreError, match=re.escape(key)):
        shelf.jobs.forget("u", [])
    assert shelf.history() == [("a", "e-1")]
    assert shelf.redis.exists(shelf.keys.sequence("u"))
    shelf.redis.delete(key)
    assert shelf.jobs.forget("u", []) == 2
    assert shelf.history() == []


def test_an_entry_that_cannot_be_read_stops_nobody(shelf):
    """Events are taken in beside it, and the next snapshot heals the history."""
    shelf.record(of(10, "a", "e-1"))
    shelf.redis.rpush(shelf.keys.history("u"), b"[1,2")
    assert shelf.record(of(20, "b", "e-2"), of(5, "c", "e-3")) == ["stored", "stored"]
    assert shelf.redis.llen(shelf.keys.history("u")) == 4
    assert shelf.seed(of(10, "a"), of(15, "d")) == 2
    assert [item for item, _ in shelf.history()] == ["c", "a", "d", "b"]
