"""What `make chaos` looks at in Redis and in answers to events: what is planted there is found."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srp4ctr.contract.events import RawEvent, Retention, pack_event
from srp4ctr.contract.state import encode_state
from srp4ctr.runtime.bundle import revisions_folder
from srp4ctr.runtime.event_store import AsyncEventStore, EventStore, History
from srp4ctr.runtime.history_encoder import HistoryEncoder, write_states
from srp4ctr.runtime.redis_client import connect_async
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr.runtime.version_records import Progress
from srp4ctr_loadtest.chaos.acts import Acts
from srp4ctr_loadtest.chaos.aftermath import examine, snapshot
from srp4ctr_loadtest.chaos.catalogues import Catalogues
from srp4ctr_loadtest.chaos.jobs import Jobs
from srp4ctr_loadtest.chaos.oracle import Oracle
from srp4ctr_loadtest.chaos.place import Place
from srp4ctr_loadtest.chaos.tellings import Tellings, wrong_outcomes
from srp4ctr_loadtest.chaos.turns import Turns
from srp4ctr_loadtest.chaos.versions import Trained


class World:
    """Two users of a published version who have acted since, in a Redis of their own."""

    def __init__(self, run, doings, redis_server):
        self.doings = doings
        self.bundle = run.bundle
        self.item_ids = run.item_ids
        self.version = run.bundle.manifest.version
        settings = StoreSettings(redis_url=redis_server.url, namespace="test")
        self.place = Place(Path(), Path(), settings)
        self.client = self.place.client()
        self.states = StateStore(self.client, self.place.keys)
        self.events = EventStore(self.client, self.place.keys, settings.retention)
        self.users = [doings.user, "somebody"]
        self.encoder = HistoryEncoder(run.bundle)
        before = b"\n".join(map(pack_event, doings.before))
        self.events.seed((user_id, before) for user_id in self.users)
        write_states(
            self.encoder,
            [History(user_id, 0, 0, doings.before, {}) for user_id in self.users],
            self.states,
            self.events,
        )
        self.states.mark_published(self.version, run.bundle.manifest.fingerprint, len(self.users))
        self.states.activate(self.version, run.bundle.manifest.fingerprint)
        self.oracle = Oracle({self.version: run.bundle}, snapshot(self.client, self.place, [self.version]))
        self.acts = [doings.acts(user_id) for user_id in self.users]
        self.record(dict.fromkeys(self.users, doings.after))
        self.refresh()

    def record(self, by_user, keep=128):
        """What a service does; gives what becomes of each event."""
        settings = self.place.settings

        async def record():
            async with connect_async(settings, settings.redis_url) as client:
                return await AsyncEventStore(client, self.place.keys, Retention(keep)).record(by_user, 5.0)

        return asyncio.run(record())

    def refresh(self):
        """What a worker does."""
        write_states(
            self.encoder, self.events.histories(self.users, [self.version]), self.states, self.events
        )

    def found(self, activated=None, previous=None):
        """What is not as it should be, by name."""
        switched = activated or self.version, previous
        seen = examine(self.client, self.place, self.oracle, self.acts, switched)
        return {name: value for name, value in vars(seen).items() if value}


@pytest.fixture
def world(tiny, doings, redis_server):
    """A world of the small run, in which all is well."""
    world = World(tiny, doings, redis_server)
    assert world.found() == {}
    yield world
    world.client.close()


def test_lost_and_repeated_events_are_noticed(world):
    """An event that is gone, one that is there twice, and one that is in the wrong place, are each told."""
    history = world.place.keys.history(world.doings.user)
    stored = world.client.lrange(history, 0, -1)
    world.client.lrem(history, 1, stored[-2])
    assert world.found() == {"lost": 1, "lost_of": {world.doings.user}}
    world.client.rpush(history, stored[-2])
    assert world.found() == {"wrong_histories": 1}
    world.client.rpush(history, stored[-2])
    assert world.found() == {"duplicates": 1}


def test_a_late_event_in_the_wrong_place_is_noticed(world):
    """An event that happened before others must stand before them, in the history and in the states made of it."""
    late = RawEvent(world.doings.before[0].time_ms + 500, "late", world.item_ids[50], {"event_type": "buy"})
    (acts, _) = world.acts
    assert acts.record([late], 0.0) == ["stored"]
    acts.acknowledge(0.0)
    assert world.found() == {"lost": 1, "lost_of": {world.doings.user}}
    assert world.record({world.doings.user: [late]}) == [["stored"]]
    world.refresh()
    assert world.found() == {}
    history = world.place.keys.history(world.doings.user)
    world.client.lrem(history, 1, pack_event(late))
    world.client.rpush(history, pack_event(late))
    assert world.found() == {"wrong_histories": 1}


def test_what_users_tell_becomes_what_the_rules_say(world):
    """Late events, events told twice and events too old for a full history come to the same in Redis and in the oracle."""
    random = np.random.default_rng(0)
    tellings = Tellings(world.item_ids, random)
    keep = 40
    store = EventStore(world.client, world.place.keys, Retention(keep))
    acts = Acts("teller", keep, world.doings.before)
    expected, found = [], []
    for number in range(150):
        own = tellings.of(acts)
        expected.append(acts.record(own, 0.0))
        found += world.record({"teller": own}, keep)
        if number % 25 == 0:
            store.seed([("teller", b"\n".join(map(pack_event, world.doings.before)))])
    assert found == expected
    assert {one for some in found for one in some} == {"stored", "duplicate", "too_old"}
    (history,) = store.histories(["teller"], [])
    assert history.events == list(acts.last.history)


def test_a_wrong_outcome_is_noticed(doings):
    """What POST /events says of each event must be what the rules say; after a lost answer it may have been stored before."""
    one, other, old = (RawEvent(time_ms, str(time_ms), "item", {}) for time_ms in (1000, 2000, 500))
    acts = Acts(doings.user, 2)
    told = [one, other, other, old]
    outcomes = acts.record(told, 0.0)
    assert outcomes == ["stored", "stored", "duplicate", "too_old"]
    sent = [(acts, event, outcome) for event, outcome in zip(told, outcomes, strict=True)]
    right = {"stored": 2, "duplicates": [2], "too_old": [3]}
    before = {"stored": 0, "duplicates": [0, 1, 2], "too_old": [3]}
    assert not list(wrong_outcomes(right, sent, again=False))
    assert not list(wrong_outcomes(before, sent, again=True))
    assert list(wrong_outcomes(before, sent, again=False)) == ["duplicate, and not stored"] * 2
    wrong = right | {"stored": 3, "duplicates": []}
    assert list(wrong_outcomes(wrong, sent, again=True)) == ["stored, and not duplicate"]
    assert list(wrong_outcomes(right | {"stored": 1}, sent, again=False)) == ["1 stored, and not 2"]
    taken = right | {"stored": 3, "too_old": []}
    assert list(wrong_outcomes(taken, sent, again=True)) == ["stored, and not too_old"]


def test_wrong_states_are_noticed(world):
    """A state that lacks events and says so, one that lacks them and does not, and none at all, are each told."""
    keys, manifest = world.place.keys, world.bundle.manifest
    (right,) = world.states.get_many(world.version, [world.doings.user])
    published = world.oracle.snapshot.states[world.version][world.doings.user]
    world.client.set(keys.state(world.version, world.doings.user), published)
    assert world.found() == {"behind": 1}
    state = world.oracle.models[world.version].decode(published)
    sequence = world.oracle.models[world.version].decode(right).sequence
    lying = encode_state(replace(state, sequence=sequence), manifest.state, manifest.fingerprint_bytes)
    world.client.set(keys.state(world.version, world.doings.user), lying)
    assert world.found() == {"wrong_states": 1}
    world.client.set(keys.state(world.version, world.doings.user), right[:-1])
    assert world.found() == {"wrong_states": 1}
    world.client.delete(keys.state(world.version, world.doings.user))
    assert world.found() == {"behind": 1}


def test_what_is_remembered_is_noticed(world):
    """A state or an event of somebody who was forgotten is told, also where the user has acted since."""
    acts, _ = world.acts
    held = world.states.get_many(world.version, [world.doings.user])[0]
    world.events.forget(world.doings.user, [world.version])
    acts.forget(0.0)
    assert world.found() == {}
    state = world.place.keys.state(world.version, world.doings.user)
    world.client.set(state, held)
    assert world.found() == {"remembered": 1}
    world.client.delete(state)
    again = acts.steps[3].history[-1]
    assert world.record({world.doings.user: [again]}) == [acts.record([again], 0.0)] == [["stored"]]
    acts.acknowledge(0.0)
    assert world.found() == {"behind": 1}
    world.refresh()
    assert world.found() == {}
    world.client.lpush(world.place.keys.history(world.doings.user), pack_event(acts.steps[3].history[0]))
    assert world.found() == {"remembered": 1}


def test_what_else_is_left_is_noticed(world):
    """So are a count that is not the number of events, entries that were given up, and another version than was activated."""
    keys = world.place.keys
    first = int(world.client.get(keys.sequence(world.doings.user)).split()[0])
    world.client.set(keys.sequence(world.doings.user), f"{first} {first + 2}")
    world.client.xadd(keys.dead_letters(), {"user": world.doings.user, "reason": "planted"})
    assert world.found("another") == {"wrong_counts": 1, "dead_letters": 1, "wrong_pointer": 1}
    assert world.found(previous="another") == {"wrong_counts": 1, "dead_letters": 1, "wrong_pointer": 1}


def test_what_a_job_leaves_is_noticed(world, tmp_path):
    """Another active version than was switched to, a rollback that went forward again, and states that were to be removed."""
    trained = Trained(tmp_path, {world.version: world.bundle, "old": world.bundle}, {})

    def failures(kind, **switched):
        jobs = Jobs(world.place, trained, [], Catalogues(trained.bundles, []), Turns([]), **switched)
        jobs.check(kind, world.states)
        return list(jobs.failures)

    right = {"active": world.version, "previous": None}
    assert failures("prune", **right) == failures("rollback", **right) == []
    (failure,) = failures("rollback", active="another", previous=world.version)
    assert failure == f"rollback: left {world.version} after None, and not another after {world.version}"
    (packed,) = world.states.get_many(world.version, [world.doings.user])
    world.states.put_many("old", [(world.doings.user, packed)])
    assert failures("prune", **right) == ["prune: left old"]
    world.states.drop("old")
    revisions = revisions_folder(tmp_path / "bundles", "old")
    revisions.mkdir(parents=True)
    assert failures("prune", **right) == ["prune: left old"]
    revisions.rmdir()
    world.states.note_progress("begun", Progress("", "", 0))
    assert (failures("prune", **right), failures("publish", **right)) == (["prune: left begun"], [])
