"""POST /events and the refresh worker: what a user did is in the next scores, once, in its place, and nothing is lost."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest

from srp4ctr.cli import main
from srp4ctr.contract.errors import StoreUnavailable
from srp4ctr.contract.events import RawEvent, unpack_history
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import decode_state, encode_state
from srp4ctr.contract.transforms import BEHAVIOUR
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.event_store import Counted, EventStore, History
from srp4ctr.runtime.history_encoder import HistoryEncoder, write_states
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.serving import free_port
from srp4ctr.runtime.sessions import OnnxEncoder, OnnxScorer
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.catch_up import catch_up
from srp4ctr_offline.histories import RawHistories
from srp4ctr_offline.publish import Seeding, publish
from srp4ctr_service.dead_letters import main as dead_letters_main
from srp4ctr_service.refresher import SUSPECT_AFTER, Refresher
from srp4ctr_service.settings import RefreshSettings

# Two encodings of a user in different company, after float16.
ROUNDING = 2e-3


class World:
    """A published run in a Redis of its own, a service, and what a refresh worker uses."""

    def __init__(self, run, settings, client):
        self.run = run
        self.settings = settings
        self.redis = client
        self.keys = Keys(settings.namespace)
        self.states = StateStore(client, self.keys)
        self.events = EventStore(client, self.keys, settings.retention)
        self.manifest = run.bundle.manifest
        self.api = None

    def publish(self):
        """Publish the run with its raw histories, and activate it."""
        seeding = Seeding(
            RawHistories.read(self.run.config, self.run.prepared, self.settings.history_events), self.events
        )
        publish(self.run.bundle, self.run.prepared, self.states, seeding)
        self.states.activate(self.manifest.version, self.manifest.fingerprint)

    def worker(self, name="one", **changes):
        """A refresh worker; it takes over at once what others leave."""
        settings = RefreshSettings(
            var_dir=self.settings.var_dir,
            namespace=self.settings.namespace,
            **{"refresh_claim_after_s": 0.001, "refresh_claim_every_s": 0.001} | changes,
        )
        streams = ActedStreams(self.redis, self.keys, name)
        streams.prepare()
        return Refresher(settings, streams, self.events, self.states)

    def act(self, user_id, number=1, event_id="e-1", timestamp_ms=None, **features):
        """One event as it is sent: `number` tells the item."""
        return {
            "user_id": user_id,
            "item_id": self.run.item_ids[number],
            "event_id": event_id,
            "timestamp_ms": timestamp_ms or time.time_ns() // 1_000_000,
            "features": {"event_type": "click", "dwell_seconds": 12.5} | features,
        }

    def send(self, *events):
        """Send events; gives the answer."""
        answer = self.api.post("/events", json={"events": list(events)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def score(self, user_id):
        """The answer for some items, given when Redis has told the service of all that others have written."""
        # It tells of a change after it has answered whoever made it, and before it answers anything later.
        self.redis.ping()
        answer = self.api.post("/score", json={"user_id": user_id, "item_ids": self.run.item_ids[:20]})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def behind(self, user_id):
        """What an answer says of the user's state."""
        state = self.score(user_id)["user_state"]
        return state["status"], state["events_behind"]

    def state(self, user_id):
        """The user's state in Redis."""
        data = self.states.get_many(self.manifest.version, [user_id])[0]
        return decode_state(data, self.manifest.state, self.manifest.fingerprint_bytes)

    def history(self, user_id):
        """The user's raw history in Redis."""
        return unpack_history(self.redis.lrange(self.keys.history(user_id), 0, -1))

    def expected(self, user_id, *events):
        """The arrays of a state of the prepared history and these events behind it, in codes made one by one."""
        prepared, bundle = self.run.prepared, self.run.bundle
        user = self.run.user_ids.index(user_id)
        end = prepared.event_counts()[user]
        items, behaviours, _ = prepared.histories(np.array([user]), np.array([end]))
        for event in events:
            item = bundle.items.codes[bundle.items.rows([event["item_id"]])]
            behaviour = bundle.transforms.encode_values(BEHAVIOUR, event["features"], "features")
            items = np.concatenate([items, item[None]], axis=1)
            behaviours = np.concatenate([behaviours, behaviour[None, None]], axis=1)
        keep = bundle.transforms.schema.max_events
        codes = prepared.users.codes[user][None]
        arrays = OnnxEncoder(bundle)(items[:, -keep:].copy(), behaviours[:, -keep:].copy(), codes)
        return self.manifest.state.of_user(arrays, 0, min(keep, end + len(events))).arrays


def assert_equal_arrays(found, expected):
    """States are equal but for the rounding of float16."""
    for name, array in expected.items():
        np.testing.assert_allclose(
            found[name].astype(np.float64), array.astype(np.float64), atol=ROUNDING, rtol=ROUNDING
        )


@pytest.fixture
def make_world(service_settings, redis_server, serving):
    """A world of a run, published, activated and served."""
    with ExitStack() as stack:

        def make(run, **changes):
            settings = service_settings(run.bundles.parent, redis_server.url)
            settings = settings.model_copy(update=changes)
            world = World(run, settings, stack.enter_context(connect(settings, redis_server.url)))
            world.publish()
            world.api = stack.enter_context(serving(settings))
            return world

        yield make


@pytest.fixture
def world(tiny, make_world):
    """A world of the small run."""
    return make_world(tiny)


def test_raw_histories_are_encoded_as_they_were_published(request, make_world):
    """What is stored of a user gives, through raw values, the very state that the prepared codes gave."""
    for name in ("tiny", "tiny_sequence"):
        run = request.getfixturevalue(name)
        world = make_world(run, namespace=f"test-{name}")
        histories = [
            History(user_id, 0, 0, world.history(user_id), {world.manifest.version: data})
            for user_id, data in zip(
                run.user_ids, world.states.get_many(world.manifest.version, run.user_ids), strict=True
            )
            if world.history(user_id)
        ]
        assert len(histories) > 300
        for one in HistoryEncoder(run.bundle).encode(histories):
            published = world.state(one.user_id)
            assert (one.state.events, one.state.length) == (published.events, published.length)
            assert one.state.last_event_at_ms == published.last_event_at_ms
            layout, fingerprint = world.manifest.state, world.manifest.fingerprint_bytes
            stored = decode_state(encode_state(one.state, layout, fingerprint), layout, fingerprint)
            assert_equal_arrays(published.arrays, stored.arrays)


def test_an_event_is_in_the_next_scores(world):
    """An acknowledged event is behind at once; a worker later the state has it, and the scores follow."""
    user_id = world.run.user_ids[3]
    before = world.score(user_id)
    assert before["user_state"]["events_behind"] == 0
    event = world.act(user_id)
    assert world.send(event)["stored"] == 1
    assert world.behind(user_id) == ("stale", 1)
    assert world.worker().step(100) == 1
    assert world.behind(user_id) == ("fresh", 0)
    assert_equal_arrays(world.state(user_id).arrays, world.expected(user_id, event))
    after = world.score(user_id)["scores"]
    assert after != pytest.approx(before["scores"], abs=1e-6)
    bundle = world.run.bundle
    vectors = bundle.items.vectors[bundle.items.rows(world.run.item_ids[:20])]
    context = bundle.transforms.encode_values("context", {}, "context")[None]
    assert after == pytest.approx(OnnxScorer(bundle)(world.state(user_id), vectors, context), abs=1e-6)


def test_an_event_counts_once(world):
    """An event that is sent again, in the same request, in another, and after it was refreshed, counts once."""
    user_id = world.run.user_ids[3]
    events = len(world.history(user_id))
    event = world.act(user_id)
    first = world.send(event, event)
    assert (first["stored"], first["duplicates"], first["too_old"]) == (1, [1], [])
    assert world.send(event)["duplicates"] == [0]
    assert world.behind(user_id) == ("stale", 1)
    world.worker().step(100)
    assert world.send(world.act("other", event_id="e-2"), event)["duplicates"] == [1]
    assert world.behind(user_id) == ("fresh", 0)
    assert len(world.history(user_id)) == events + 1


def test_late_events_take_their_place(world):
    """Events are in the order of their times, whenever they come; what is older than a full history is not stored."""
    one, other = world.run.user_ids[3:5]
    now = time.time_ns() // 1_000_000
    sent = [("b", now - 20), ("d", now), ("a", now - 30), ("c", now - 20)]
    world.send(*(world.act(one, number, name, at) for number, (name, at) in enumerate(sent)))
    assert [event.event_id for event in world.history(one)][-4:] == ["a", "b", "c", "d"]
    keep = world.settings.history_events
    many = [world.act(other, 1, f"e-{number}", now - keep + number) for number in range(keep)]
    assert world.send(*many)["stored"] == keep
    late = world.send(
        world.act(other, 1, "late", now - keep - 1), world.act(other, 1, "just", now - keep + 1)
    )
    assert (late["stored"], late["too_old"]) == (1, [0])
    assert [event.event_id for event in world.history(other)][:2] == ["e-1", "just"]


def test_a_new_user_is_scored_from_the_first_event_on(world):
    """Somebody whom no snapshot knew is cold until the first event is refreshed, and not after."""
    assert world.behind("new") == ("cold", 0)
    event = world.act("new")
    world.send(event)
    assert world.behind("new") == ("cold", 1)
    world.worker().step(100)
    assert world.behind("new") == ("fresh", 0)
    assert world.state("new").events == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"timestamp_ms": 9_999_999_999_999}, "events[1].timestamp_ms"),
        ({"timestamp_ms": 0}, "events[1].timestamp_ms"),
        ({"event_id": 'a"b'}, "events[1].event_id"),
        ({"event_id": ""}, "events[1].event_id"),
        ({"item_id": "a\0b"}, "events[1].item_id"),
        ({"features": {"mood": "good"}}, "events[1].features.mood"),
        ({"features": {"dwell_seconds": "long"}}, "events[1].features.dwell_seconds"),
        ({"features": {"event_type": 1.5}}, "events[1].features.event_type"),
        ({"features": {"event_type": []}}, "events[1].features.event_type"),
    ],
)
def test_a_wrong_event_is_refused_with_all_others(world, change, field):
    """An event that does not fit is named by its field, and nothing of the request is stored."""
    user_id = world.run.user_ids[3]
    answer = world.api.post("/events", json={"events": [world.act(user_id), world.act(user_id) | change]})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert world.behind(user_id) == ("fresh", 0)


def test_what_a_worker_leaves_another_takes_over(world):
    """Entries that were read and never finished are another worker's."""
    user_id = world.run.user_ids[3]
    event = world.act(user_id)
    worker, dead = world.worker("one"), ActedStreams(world.redis, world.keys, "dead")
    world.send(event)
    assert len(dead.read(10, None)) == 1
    time.sleep(0.01)
    assert worker.step(0) == 1
    assert world.behind(user_id) == ("fresh", 0)
    assert_equal_arrays(world.state(user_id).arrays, world.expected(user_id, event))
    assert ActedStreams(world.redis, world.keys, "two").waiting() == 0


def test_workers_that_have_ended_leave_nothing_behind(world):
    """Redis forgets them, but for those whose entries nobody has taken over yet: these are not lost with them."""
    first, second = world.run.user_ids[3:5]
    world.send(world.act(first))
    done = ActedStreams(world.redis, world.keys, "done")
    done.prepare()
    done.finish(done.read(10, None))
    world.send(world.act(second))
    assert len(ActedStreams(world.redis, world.keys, "killed").read(10, None)) == 1
    time.sleep(0.02)
    streams = ActedStreams(world.redis, world.keys, "new")
    assert streams.remove_ended(60_000) == 0
    assert streams.remove_ended(10) > 0
    assert streams.remove_ended(10) == 0
    assert [entry.user_id for entry in streams.claim(0, 10)] == [second]


def test_what_a_dead_worker_left_does_not_keep_what_is_new_waiting(world):
    """However much it was, both are taken in turns; and in the end all of it."""
    old, new = world.run.user_ids[3:5]
    for number in range(5):
        world.send(world.act(old, number, f"e-{number}"))
    dead = ActedStreams(world.redis, world.keys, "dead")
    dead.prepare()
    assert len(dead.read(10, None)) == 5
    time.sleep(0.01)
    worker = world.worker()
    assert worker.step(1) == 1
    world.send(world.act(new))
    worker.step(1)
    assert world.behind(new) == ("fresh", 0)
    for _ in range(10):
        worker.step(1)
    assert dead.waiting() == 0


def test_a_feature_that_another_version_wrote_in_another_type_is_read(world):
    """A history is of no version: numbers in texts are numbers, and what is none is missing."""
    encoder = HistoryEncoder(world.run.bundle)

    def arrays(**features):
        event = RawEvent(1_700_000_000_000, "e", world.run.item_ids[1], {"event_type": "click"} | features)
        (one,) = encoder.encode([History("u", 0, 0, [event], {})])
        return one.state.arrays

    known, missing = arrays(dwell_seconds=12.5), arrays()
    assert_equal_arrays(arrays(dwell_seconds="12.5"), known)
    with pytest.raises(AssertionError):
        assert_equal_arrays(known, missing)
    for value in ("soon", "nan", "inf", 10**400, True):
        assert_equal_arrays(arrays(dwell_seconds=value), missing)


def test_what_cannot_be_processed_is_put_aside(world):
    """A history that cannot be read ends among the dead letters, with its reason, and the others are refreshed."""
    bad, good = world.run.user_ids[3:5]
    world.send(world.act(bad), world.act(good))
    world.redis.rpush(world.keys.history(bad), b"[1,2")
    worker = world.worker()
    worker.step(100)
    assert world.behind(good) == ("fresh", 0)
    number, letters = ActedStreams(world.redis, world.keys, "any").dead_letters(10)
    assert number == 1
    assert letters[0].user_id == bad
    assert "cannot be read" in letters[0].reason
    assert ActedStreams(world.redis, world.keys, "any").waiting() == 0


def test_what_workers_die_of_is_put_aside_and_may_be_tried_again(world, monkeypatch, capsys):
    """A user whom no worker survives is given up before it is encoded again; who was with that user is refreshed."""
    deadly, innocent = world.run.user_ids[3:5]
    world.send(world.act(deadly), world.act(innocent))
    streams = [ActedStreams(world.redis, world.keys, f"killed-{number}") for number in range(4)]
    streams[0].prepare()
    assert len(streams[0].read(10, None)) == 2
    assert len(streams[1].claim(0, 10)) == 2
    # From here on each is encoded alone; these two die of the one.
    for worker in streams[2:]:
        entries = {entry.user_id: entry for entry in worker.claim(0, 10)}
        assert min(entry.attempts for entry in entries.values()) > SUSPECT_AFTER
        worker.begin_alone(entries[deadly])
    time.sleep(0.01)
    assert world.worker().step(0) == 1
    assert world.behind(innocent) == ("fresh", 0)
    assert world.behind(deadly)[1] == 1
    number, letters = streams[0].dead_letters(10)
    assert (number, letters[0].user_id) == (1, deadly)
    assert "2 refresh workers ended" in letters[0].reason
    # What the user does then ends no more workers.
    world.send(world.act(deadly, 2, "e-2"))
    assert world.worker().step(100) == 0
    assert streams[0].dead_letters(1)[0] == 2
    assert streams[0].waiting() == 0
    assert world.behind(deadly)[1] == 2
    monkeypatch.setenv("SRP4CTR_REDIS_URL", world.settings.redis_url)
    monkeypatch.setenv("SRP4CTR_NAMESPACE", world.settings.namespace)
    assert dead_letters_main(["--requeue"]) == 0
    assert "1 users are to be refreshed again" in capsys.readouterr().out
    assert streams[0].dead_letters(1)[0] == 0
    assert world.worker().step(100) == 1
    assert world.behind(deadly) == ("fresh", 0)


def test_nobody_is_put_aside_for_a_redis_that_fails(world):
    """A worker that could not write, and goes on, has not died of the users whom it was encoding."""
    user_id = world.run.user_ids[3]
    world.send(world.act(user_id))
    for name in ("killed-1", "killed-2"):
        streams = ActedStreams(world.redis, world.keys, name)
        streams.prepare()
        assert len(streams.claim(0, 10) or streams.read(10, None)) == 1
    worker = world.worker()
    world.redis.config_set("maxmemory", "1")
    for _ in range(4):
        time.sleep(0.01)
        with pytest.raises(StoreUnavailable):
            worker.step(0)
    world.redis.config_set("maxmemory", "0")
    time.sleep(0.01)
    assert worker.step(0) == 1
    assert world.behind(user_id) == ("fresh", 0)
    assert worker.metrics.given_up._value.get() == 0


def test_a_newer_state_is_not_overwritten(world):
    """A worker that was held up between reading and writing does not take events back."""
    user_id = world.run.user_ids[3]
    world.send(world.act(user_id, 1, "e-1"))
    slow = world.events.histories([user_id], [world.manifest.version])
    world.send(world.act(user_id, 2, "e-2"))
    world.worker().step(100)
    newest = world.state(user_id)
    assert write_states(HistoryEncoder(world.run.bundle), slow, world.states, world.events) == 0
    assert world.state(user_id).sequence == newest.sequence


def test_a_snapshot_is_not_lost_to_a_worker_that_read_before_it(world):
    """The active version may be published again while a worker encodes: the history that it read is not the user's any more."""
    user_id = world.run.user_ids[3]
    event = world.act(user_id)
    # An older snapshot, which had two events of the user.
    whole = world.redis.lrange(world.keys.history(user_id), 0, -1)
    world.redis.ltrim(world.keys.history(user_id), 0, 1)
    world.send(event)
    slow = world.events.histories([user_id], [world.manifest.version])
    assert len(slow[0].events) == 3
    world.publish()
    assert len(world.history(user_id)) == len(whole) + 1
    assert write_states(HistoryEncoder(world.run.bundle), slow, world.states, world.events) == 1
    assert world.behind(user_id) == ("fresh", 0)
    assert_equal_arrays(world.state(user_id).arrays, world.expected(user_id, event))


def test_a_forgotten_user_is_gone(world):
    """Nothing is left of a forgotten user, and what was under way for the user is not written any more."""
    user_id, other = world.run.user_ids[3:5]
    world.send(world.act(user_id), world.act(other))
    held_up = world.events.histories([user_id], [world.manifest.version])
    assert world.api.delete(f"/users/{user_id}").json()["removed"] == 4
    assert write_states(HistoryEncoder(world.run.bundle), held_up, world.states, world.events) == 0
    assert world.worker().step(100) == 1
    assert world.behind(user_id) == ("cold", 0)
    assert world.behind(other) == ("fresh", 0)
    assert [key for key in world.redis.scan_iter() if user_id.encode() in key.split(b":")] == []
    # Coming back, the user begins anew.
    world.send(world.act(user_id, 1, "again"))
    assert world.behind(user_id) == ("cold", 1)


def test_events_outlive_the_next_publish(world):
    """Publishing again keeps the events that came since the snapshot, and the states that have them."""
    user_id = world.run.user_ids[3]
    event = world.act(user_id)
    world.send(event)
    world.worker().step(100)
    world.publish()
    assert world.history(user_id)[-1].event_id == "e-1"
    assert world.behind(user_id) == ("fresh", 0)
    assert_equal_arrays(world.state(user_id).arrays, world.expected(user_id, event))


def test_redis_must_have_an_event_before_it_is_acknowledged(world, redis_server):
    """Without Redis, or with a full or read-only one, events are refused with 503, and counted by nobody; scores go on."""
    user_id = world.run.user_ids[3]
    event = world.act(user_id)

    def refused():
        answer = world.api.post("/events", json={"events": [event]})
        assert answer.status_code == 503, answer.text
        assert answer.json()["type"] == "/problems/store-unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        assert world.api.post("/score", json={"user_id": user_id, "item_ids": ["1"]}).status_code == 200

    used = world.redis.info("memory")["used_memory"]
    world.redis.config_set("maxmemory", used // 2)
    refused()
    world.redis.config_set("maxmemory", 0)
    world.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    refused()
    world.redis.execute_command("REPLICAOF", "NO", "ONE")
    assert world.behind(user_id) == ("fresh", 0)
    redis_server.kill()
    refused()
    redis_server.start()
    assert world.send(event)["stored"] == 1
    redis_server.kill()
    redis_server.start()
    world.worker().step(100)
    assert world.history(user_id)[-1].event_id == "e-1"
    assert world.state(user_id).sequence > 0


def test_what_redis_holds_may_be_something_else(world):
    """Events whose user's keys hold something else are refused with a problem of its own, and others' are taken in."""
    user_id = world.run.user_ids[3]
    world.redis.delete(world.keys.history(user_id))
    world.redis.set(world.keys.history(user_id), "x")
    answer = world.api.post("/events", json={"events": [world.act(user_id)]})
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/store-damaged")
    assert int(answer.headers["retry-after"]) >= 1
    assert world.send(world.act(world.run.user_ids[4]))["stored"] == 1


def test_features_of_the_version_before_are_taken(tiny, world, wait_until):
    """After a switch to a version without a feature, events that have it are stored whole; what no version has is refused."""
    user_id = tiny.user_ids[3]
    event = world.act(user_id, mood="good")
    assert world.api.post("/events", json={"events": [event]}).status_code == 422
    before = tiny.bundles / "before"
    before.mkdir()
    try:
        schema = json.loads((tiny.bundle.folder / "schema.json").read_bytes())
        schema["behaviour_features"].append({"name": "mood", "type": "categorical"})
        (before / "schema.json").write_text(json.dumps(schema))
        world.redis.hset(world.keys.active(), "previous", "before")
        wait_until(lambda: world.api.post("/events", json={"events": [event]}).status_code == 200)
        assert world.history(user_id)[-1].features["mood"] == "good"
        wrong = world.api.post("/events", json={"events": [world.act(user_id, mood=1.5, mod="good")]})
        assert [error["field"] for error in wrong.json()["errors"]] == ["events[0].features.mod"]
        world.worker().step(100)
        assert world.behind(user_id) == ("fresh", 0)
    finally:
        shutil.rmtree(before)


def test_all_versions_that_may_be_scored_with_are_refreshed(tiny, tiny_sequence, make_world):
    """A worker refreshes the active version, the one before it for a while, and the one that is about to be active."""
    world = make_world(tiny)
    user_id = tiny.user_ids[3]
    later = tiny_sequence.bundle.manifest
    shutil.copytree(tiny_sequence.bundle.folder, tiny.bundles / later.version, dirs_exist_ok=True)

    def sequences():
        found = []
        for manifest in (world.manifest, later):
            data = world.states.get_many(manifest.version, [user_id])[0]
            state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
            found.append(Counted.read(world.redis.get(world.keys.sequence(user_id))).behind(state.sequence))
        return found

    try:
        publish(tiny_sequence.bundle, tiny_sequence.prepared, world.states)
        world.send(world.act(user_id, 1, "e-1"))
        world.worker().step(100)
        assert sequences() == [0, 1]
        world.states.announce(later.version)
        world.send(world.act(user_id, 2, "e-2"))
        world.worker().step(100)
        assert sequences() == [0, 0]
        world.states.activate(later.version, later.fingerprint)
        world.states.announce(None)
        world.send(world.act(user_id, 3, "e-3"))
        world.worker().step(100)
        assert sequences() == [0, 0]
        world.send(world.act(user_id, 4, "e-4"))
        world.worker(refresh_previous_s=0).step(100)
        assert sequences() == [1, 0]
    finally:
        shutil.rmtree(tiny.bundles / later.version)


def test_who_acted_since_the_snapshot_is_caught_up(tiny, make_world):
    """Catching up encodes those users anew whose states of the version lack events, and no others."""
    world = make_world(tiny)
    one, other = tiny.user_ids[3:5]
    events = [world.act(one, 1, "e-1"), world.act("new", 2, "e-2")]
    world.send(*events)
    renewed = []
    done = catch_up(tiny.bundle, world.events, world.states, renew=lambda: renewed.append(True))
    assert (done.behind, done.written) == (2, 2)
    assert renewed
    assert [world.behind(user_id) for user_id in (one, other, "new")] == [("fresh", 0)] * 3
    assert_equal_arrays(world.state(one).arrays, world.expected(one, events[0]))
    assert catch_up(tiny.bundle, world.events, world.states).behind == 0


def test_activation_leaves_nobody_behind(tiny, tiny_sequence, make_world, redis_server, monkeypatch, capsys):
    """`srp4ctr activate` catches up who acted since the new version's snapshot before services switch to it."""
    world = make_world(tiny)
    one, other = tiny.user_ids[3:5]
    later = tiny_sequence.bundle.manifest
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_NAMESPACE", world.settings.namespace)
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(world.settings.var_dir))
    shutil.copytree(tiny_sequence.bundle.folder, tiny.bundles / later.version, dirs_exist_ok=True)
    try:
        publish(tiny_sequence.bundle, tiny_sequence.prepared, world.states)
        world.send(world.act(one, 1, "e-1"), world.act("new", 2, "e-2"))
        assert main(["activate", later.version, "--no-gate"]) == 0
        assert "caught up 2 users who acted since the snapshot" in capsys.readouterr().out
        answers = {}
        give_up_at = time.monotonic() + 20
        while (answers := {user: world.score(user) for user in (one, other, "new")})[one][
            "model_version"
        ] != later.version:
            assert time.monotonic() < give_up_at
        assert [answer["user_state"]["events_behind"] for answer in answers.values()] == [0, 0, 0]
        assert [answer["user_state"]["status"] for answer in answers.values()] == ["fresh"] * 3
        assert world.states.upcoming() is None
    finally:
        shutil.rmtree(tiny.bundles / later.version)


def test_a_rollback_leaves_nobody_behind(tiny, tiny_sequence, make_world, redis_server, monkeypatch, capsys):
    """`srp4ctr rollback` catches up who acted after workers had left the version before; cut off, activate completes it."""
    world = make_world(tiny)
    one, other = tiny.user_ids[3:5]
    back, later = world.manifest, tiny_sequence.bundle.manifest
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_NAMESPACE", world.settings.namespace)
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(world.settings.var_dir))
    shutil.copytree(tiny_sequence.bundle.folder, tiny.bundles / later.version, dirs_exist_ok=True)

    def behind():
        return [user for users in world.events.users_behind(back.version) for user in users]

    try:
        publish(tiny_sequence.bundle, tiny_sequence.prepared, world.states)
        world.states.activate(later.version, later.fingerprint)
        event = world.act(one, 1, "e-1")
        world.send(event, world.act("new", 2, "e-2"))
        world.worker(refresh_previous_s=0).step(100)
        assert sorted(behind()) == sorted([one, "new"])
        assert main(["rollback", "--threads", "1"]) == 0
        told = capsys.readouterr().out
        assert told.index(f"active: {back.version}") < told.index("caught up 2 users")
        assert behind() == []
        assert_equal_arrays(world.state(one).arrays, world.expected(one, event))
        assert world.states.active().version == back.version
        # The same without the second half, as when it is killed after the switch.
        world.states.roll_back()
        world.send(world.act(other, 3, "e-3"))
        world.worker(refresh_previous_s=0).step(100)
        assert main(["rollback", "--no-catch-up"]) == 0
        assert "caught up" not in capsys.readouterr().out
        assert (world.states.active().version, behind()) == (back.version, [other])
        assert main(["activate", back.version]) == 0
        assert behind() == []
        assert (world.states.active().version, world.states.active().previous) == (
            back.version,
            later.version,
        )
    finally:
        shutil.rmtree(tiny.bundles / later.version)


def test_the_command_refreshes_until_it_is_told_to_stop(world, redis_server, wait_until):
    """`srp4ctr refresh` keeps states fresh, survives a Redis that is killed, shows metrics, and ends in order."""
    port = free_port()
    environment = os.environ | {
        "SRP4CTR_REDIS_URL": redis_server.url,
        "SRP4CTR_NAMESPACE": world.settings.namespace,
        "SRP4CTR_VAR_DIR": str(world.settings.var_dir),
        "SRP4CTR_REFRESH_METRICS_PORT": str(port),
    }
    user_id = world.run.user_ids[3]
    with subprocess.Popen([sys.executable, "-m", "srp4ctr.cli", "refresh"], env=environment) as process:
        try:
            world.send(world.act(user_id, 1, "e-1"))
            wait_until(lambda: world.behind(user_id) == ("fresh", 0))
            redis_server.kill()
            time.sleep(1)
            redis_server.start()
            wait_until(lambda: world.behind(user_id) == ("fresh", 0))
            world.send(world.act(user_id, 2, "e-2"))
            assert world.history(user_id)[-1].event_id == "e-2"
            wait_until(lambda: world.behind(user_id) == ("fresh", 0))
            lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
            assert "srp4ctr_refresh_states_total 2.0" in lines
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_forgotten_user_may_be_named_on_the_command_line(world, redis_server, monkeypatch, capsys):
    """`srp4ctr forget` does what DELETE /users does, for several users."""
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_NAMESPACE", world.settings.namespace)
    one, other = world.run.user_ids[3:5]
    world.send(world.act(one))
    assert main(["forget", one, other]) == 0
    assert f"forgot {one}: 4 keys and waiting entries removed\nforgot {other}: 2 " in capsys.readouterr().out
    assert [world.behind(user_id) for user_id in (one, other)] == [("cold", 0)] * 2


@contextmanager
def slow_way(address, folder, delay_s, slow=bool):
    """A Unix socket that passes on to another one, each slow piece and what is behind it so much later, in either direction."""

    async def pipe(reader, writer):
        while piece := await reader.read(65536):
            await asyncio.sleep(delay_s if slow(piece) else 0)
            writer.write(piece)
        writer.close()

    async def accept(reader, writer):
        other_reader, other_writer = await asyncio.open_unix_connection(address)
        await asyncio.gather(pipe(reader, other_writer), pipe(other_reader, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_unix_server(accept, f"{folder}/slow.sock"))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"unix://{folder}/slow.sock"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_a_slow_redis_delays_events_and_not_scores(world, serving, redis_server, short_folder):
    """With 200 ms to Redis, events are still taken in, and scores are given without waiting for it, saying so."""
    user_id = world.run.user_ids[3]
    address = redis_server.url.removeprefix("unix://")
    with slow_way(address, short_folder, 0.1) as url:
        settings = world.settings.model_copy(update={"redis_url": url, "redis_score_timeout_ms": 50})
        with serving(settings) as api:
            answer = api.post("/score", json={"user_id": user_id, "item_ids": ["1"]}).json()
            assert answer["degraded"] == ["redis_unavailable"]
            assert answer["user_state"] == {"status": "missing", "age_ms": None, "events_behind": None}
            sent = api.post("/events", json={"events": [world.act(user_id)]})
            assert sent.json()["stored"] == 1
    assert world.behind(user_id) == ("stale", 1)


@contextmanager
def told_late(world, serving, folder, delay_s, limit_ms):
    """The world is served by a service that Redis tells so late what has changed; a read waits so long for Redis."""
    address = world.settings.redis_url.removeprefix("unix://")
    with ExitStack() as stack:
        way = slow_way(address, folder, delay_s, slow=lambda piece: b"invalidate" in piece)
        changes = {"redis_url": stack.enter_context(way), "redis_score_timeout_ms": limit_ms}
        world.api = stack.enter_context(serving(world.settings.model_copy(update=changes)))
        yield


def test_what_was_acknowledged_is_in_the_next_answer(world, serving, short_folder):
    """However late Redis tells that it has changed: an event counts and a forgotten user is gone from the next answer on."""
    user_id, other = world.run.user_ids[3:5]
    with told_late(world, serving, short_folder, delay_s=0.2, limit_ms=10_000):
        assert [world.behind(one) for one in (user_id, other)] == [("fresh", 0)] * 2
        world.send(world.act(user_id), world.act(other))
        assert [world.behind(one) for one in (user_id, other)] == [("stale", 1)] * 2
        world.api.delete(f"/users/{user_id}")
        assert [world.behind(one) for one in (user_id, other)] == [("cold", 0), ("stale", 1)]
        world.send(world.act(user_id, 1, "again"))
        assert world.behind(user_id) == ("cold", 1)


def test_what_is_last_known_of_who_acted_and_who_was_forgotten(world, serving, redis_server, short_folder):
    """Where Redis stops just then: the one is scored by the state from before, and of the other nothing is left."""
    acted, forgotten = world.run.user_ids[3:5]
    # So late that nobody is told.
    with told_late(world, serving, short_folder, delay_s=60, limit_ms=1000):
        assert [world.behind(one) for one in (acted, forgotten)] == [("fresh", 0)] * 2
        world.send(world.act(acted))
        world.api.delete(f"/users/{forgotten}")
        redis_server.pause()
        try:
            found = [
                world.api.post("/score", json={"user_id": one, "item_ids": ["1"]}).json()
                for one in (acted, forgotten)
            ]
        finally:
            redis_server.resume()
    assert [one["degraded"] for one in found] == [["redis_unavailable"]] * 2
    assert [one["user_state"]["status"] for one in found] == ["stale", "missing"]


def test_a_redis_that_comes_back_empty_makes_everybody_cold(world, wait_until):
    """Without its data Redis makes users cold, events are taken in all the same, and publishing again mends it."""
    user_id = world.run.user_ids[3]
    worker = world.worker()
    world.redis.flushall()
    assert world.behind(user_id) == ("cold", 0)
    world.send(world.act(user_id))
    assert world.behind(user_id) == ("cold", 1)
    assert worker.step(0) == 0
    world.publish()
    wait_until(lambda: worker.step(0) == 1)
    assert world.behind(user_id) == ("fresh", 0)
    assert world.state(user_id).events > 1


def test_histories_expire_when_the_config_says_so(tiny, make_world):
    """With a time to live, histories and their counts go that long after the last event."""
    world = make_world(tiny, history_ttl_days=1.0)
    user_id = tiny.user_ids[3]
    world.send(world.act(user_id))
    for key in (world.keys.history(user_id), world.keys.sequence(user_id)):
        assert 86_000 < world.redis.ttl(key) <= 86_400
    store = StateStore(world.redis, world.keys, state_ttl_s=100)
    data = world.states.get_many(world.manifest.version, [user_id])[0]
    store.put_many(world.manifest.version, [(user_id, data)])
    assert 90 < world.redis.ttl(world.keys.state(world.manifest.version, user_id)) <= 100
