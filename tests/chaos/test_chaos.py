"""`make chaos`: it finds nothing where nothing is wrong, and what is planted where something is."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srp4ctr.contract.events import RawEvent, Retention, pack_event
from srp4ctr.contract.state import encode_state
from srp4ctr.runtime.event_store import AsyncEventStore, EventStore, History
from srp4ctr.runtime.history_encoder import HistoryEncoder, write_states
from srp4ctr.runtime.redis_client import connect_async
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import Progress, StateStore
from srp4ctr_loadtest.chaos.acts import Acts
from srp4ctr_loadtest.chaos.aftermath import examine, snapshot
from srp4ctr_loadtest.chaos.jobs import Jobs
from srp4ctr_loadtest.chaos.kills import TARGETS
from srp4ctr_loadtest.chaos.oracle import Oracle, Snapshot
from srp4ctr_loadtest.chaos.place import Place
from srp4ctr_loadtest.chaos.tellings import Tellings, wrong_outcomes
from srp4ctr_loadtest.chaos.traffic import Observation
from srp4ctr_loadtest.chaos.turns import FOLLOW_S, Absence, Turns
from srp4ctr_loadtest.chaos.versions import VERSIONS, Trained

USER = "someone"
KEEP = 128
ASKED_AFTER_S, ACTED_AFTER_S, ACKNOWLEDGED_AFTER_S = 1000.0, 0.0, 90.0
"""Seconds, from when the states were published."""
AGE_MS = 905_000
"""Of a state that may have no event or some, but was encoded before the last was acknowledged."""
CONTEXT = {"hour": 3, "device": "mobile"}


def acted(run, number):
    """An event after those of the snapshot."""
    features = {"event_type": ["buy", "click", "cart"][number], "dwell_seconds": [200.0, 1.0, 40.0][number]}
    return RawEvent(1_800_000_000_000 + number, f"e-{number}", run.item_ids[number], features)


def before(run):
    """What a user did before the snapshot."""
    return [
        RawEvent(1_700_000_000_000 + number, "", run.item_ids[-number], {"event_type": "click"})
        for number in range(1, 6)
    ]


def test_chaos(tiny, tiny_sequence, tmp_path):
    """Everything is killed once under load: all answers are right, no event is lost, what is cut off completes."""
    folder = tmp_path / "chaos"
    runs = {}
    for run in (tiny, tiny_sequence):
        version = run.bundle.manifest.version
        shutil.copytree(run.bundle.folder, folder / "bundles" / version)
        # Without what the jobs write into it.
        runs[version] = f"runs/{version}"
        own = folder / runs[version]
        own.mkdir(parents=True)
        for stage in ("prepared", "finetune"):
            (own / stage).symlink_to(run.run / stage)
    (folder / VERSIONS).write_text(json.dumps(runs))
    command = [sys.executable, "-m", "srp4ctr_loadtest.chaos", "--kills", str(len(TARGETS)), "--gap", "0.5"]
    done = subprocess.run(
        command,
        env=os.environ | {"SRP4CTR_VAR_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == dict.fromkeys(TARGETS, 1)
    assert found["checked"] == found["answers"] > 0
    assert found["events_sent"] == found["events_acknowledged"] > found["events_late"] > 0
    assert found["reruns"] == found["reruns_completed"] > 0
    for name in ("wrong", "mixed", "lost", "duplicates", "behind", "wrong_states", "remembered"):
        assert found[name] == 0


@pytest.fixture(scope="module")
def oracle(tiny, tiny_sequence):
    """An oracle of two versions, and one user whom both know."""
    bundles = {run.bundle.manifest.version: run.bundle for run in (tiny, tiny_sequence)}
    states = {}
    for version, bundle in bundles.items():
        (one,) = HistoryEncoder(bundle).encode([History(USER, 0, before(tiny), {})])
        packed = encode_state(one.state, bundle.manifest.state, bundle.manifest.fingerprint_bytes)
        states[version] = {USER: packed}
    return Oracle(bundles, Snapshot({USER: before(tiny)}, states))


def three(run, sent_at=0.0, acknowledged_at=0.0):
    """A user after three events, one by one."""
    acts = Acts(USER, KEEP, before(run))
    for number in range(3):
        acts.record([acted(run, number)], sent_at)
        acts.acknowledge(acknowledged_at)
    return acts


@pytest.fixture
def answered(tiny, tiny_sequence, oracle):
    """Makes an answer by the first version: of which of three events, and what it says, and what is known."""
    item_ids = tiny.item_ids[:20]
    published_at = time.monotonic()
    acts = three(tiny, published_at + ACTED_AFTER_S, published_at + ACKNOWLEDGED_AFTER_S)
    asked_at = published_at + ASKED_AFTER_S
    one, other = (run.bundle.manifest.version for run in (tiny, tiny_sequence))

    def make(
        count, least=0, by="one", status="fresh", behind=0, degraded=(), tier="full", user=acts, age_ms=AGE_MS
    ):
        model = oracle.models[one if by == "one" else other]
        state = model.bundle.cold_state if count is None else model.state(user, count)
        scores = model.score(state, model.vectors(item_ids), CONTEXT)
        if tier == "prior":
            scores = model.bundle.items.prior[model.bundle.items.rows(item_ids)]
        said = {"status": status, "events_behind": behind, "age_ms": None if count is None else age_ms}
        answer = {"scores": scores.tolist(), "user_state": said, "degraded": list(degraded), "tier": tier}
        most = len(user.steps) - 1
        return Observation(user, item_ids, CONTEXT, asked_at, asked_at, least, most, 0.0, one, answer)

    return make


def test_the_oracle_takes_what_may_be(oracle, answered):
    """Right are the states with all acknowledged events, those that say what they lack, and others where Redis is away."""
    away = {"behind": None, "degraded": ["redis_unavailable"]}
    stranger = Acts("stranger", KEEP)
    for right in (
        answered(3, least=3),
        answered(3, least=2),
        answered(1, least=2, behind=1, status="stale"),
        answered(0, least=3, status="stale", **away),
        answered(2, behind=1, status="stale"),
        answered(None, least=3, status="missing", **away),
        answered(None, user=stranger, status="cold"),
        answered(3, tier="prior", degraded=["deadline"]),
    ):
        assert oracle.judge(right).outcome == "right", right
    # Of an event that came while it was encoded, too.
    assert oracle.judge(answered(3, least=3, behind=1, status="stale")).outcome == "cautious"


def test_the_oracle_notices_what_may_not_be(oracle, answered):
    """Wrong is a state that is older than it says, one that nobody has, a damaged one, a version that is not active."""
    right = answered(3, least=3)
    other = right.answer | {"scores": [score + 1e-3 for score in right.answer["scores"]]}
    for wrong, why in (
        (answered(2, least=3), "state .* of step 2"),
        (answered(1, least=3, behind=1, status="stale"), "state .* of step 1"),
        (
            answered(3, least=3, behind=2, status="stale"),
            "2 events behind .*; 3 events had been acknowledged",
        ),
        (answered(2, least=2, behind=3, status="stale"), "3 events behind .*; 2 events had been"),
        (answered(3, behind=-1, status="stale"), "-1 events behind"),
        (answered(3, least=3, age_ms=-1), "fresh, and -1 ms old"),
        (answered(3, least=3, age_ms=None), "fresh, and None ms old"),
        (answered(3, least=3, age_ms=2_000_000), "state .* of step 3; said to be fresh, 0 .* 2000000 ms old"),
        (answered(0, age_ms=2_000_000), "state .* of step 0; said to be fresh, 0 .* 2000000 ms old"),
        (
            answered(2, least=3, behind=1, status="stale", age_ms=10_000),
            "state .* of step 2; .* 10000 ms old",
        ),
        (answered(3, behind=1), "fresh, and 1 events behind"),
        (answered(None, least=3, status="missing", behind=None), "None events behind, and degraded by"),
        (answered(None, least=3, status="cold", behind=3), "said to be cold"),
        (answered(3, behind=None, degraded=["state_corrupt"]), "no state is damaged"),
        (replace(right, answer=other), "nothing known"),
        (replace(right, answer=right.answer | {"tier": "prior"}), "not the items' click rates"),
        (replace(right, left_s=None), "cannot have been active"),
        (replace(right, left_s=FOLLOW_S + 1), "had been left for 6.0 s"),
    ):
        verdict = oracle.judge(wrong)
        assert verdict.outcome == "wrong", why
        assert re.search(why, verdict.reason), verdict


def test_the_oracle_notices_that_somebody_is_remembered(tiny, oracle, answered):
    """Once it is acknowledged that a user was forgotten, no answer is of what the user did before, with Redis or without."""
    acts = answered(3).acts
    at = acts.steps[3].sent_at + 1
    acts.forget(at)
    kept = answered(3, least=3, user=acts)
    unknown = {"status": "cold", "age_ms": None}
    for right in (kept, answered(None, least=3, user=acts, **unknown)):
        assert oracle.judge(right).outcome == "right"
    acts.acknowledge(at)
    away = {"behind": None, "degraded": ["redis_unavailable"]}
    for wrong in (
        replace(kept, least=4),
        answered(3, least=4, user=acts, status="stale", **away),
        answered(4, least=4, user=acts, status="cold"),
        answered(None, least=4, user=acts, behind=3, **unknown),
    ):
        verdict = oracle.judge(wrong)
        assert (verdict.outcome, "forgotten by step 4" in verdict.reason) == ("wrong", True), verdict
    assert oracle.judge(answered(None, least=4, user=acts, **unknown)).outcome == "right"
    # What comes then is all that the state is made of, and the count begins anew.
    acts.record([acted(tiny, 0)], at + 1)
    acts.acknowledge(at + 1)
    assert oracle.judge(answered(None, least=5, user=acts, behind=1, **unknown)).outcome == "right"
    assert oracle.judge(answered(5, least=5, user=acts)).outcome == "right"
    assert oracle.judge(answered(3, least=5, user=acts, behind=1, status="stale")).outcome == "wrong"


def test_the_oracle_notices_a_mixture(oracle, answered):
    """Scores of another version than the answer names are told from scores that are merely wrong."""
    assert oracle.judge(answered(3, least=3, by="other")).outcome == "mixed"


def test_a_version_may_answer_in_its_turn_only():
    """Not before a run begins to switch to it, nor for longer than services need once one has switched away from it."""
    absences = []
    turns = Turns(absences)
    turns.begin("one", 0)
    turns.complete("one", 1)
    turns.begin("other", 10)
    # A run that was cut off is run again.
    turns.begin("other", 12)
    assert turns.left_s("other", 5, 9) is None
    assert (turns.left_s("other", 9, 11), turns.left_s("one", 100, 101)) == (0, 0)
    turns.complete("other", 20)
    assert turns.left_s("other", 100, 101) == 0
    assert (turns.left_s("one", 15, 101), turns.left_s("one", 23, 24), turns.left_s("one", 90, 91)) == (
        0,
        3,
        70,
    )
    # Nobody can know while Redis is away.
    absences += [Absence(5, 6), Absence(21, 22), Absence(24)]
    assert (turns.left_s("one", 23, 24), turns.left_s("one", 90, 91)) == (1, 2)
    absences[-1].back_at = 30
    assert turns.left_s("one", 90, 91) == 60
    turns.begin("one", 95)
    assert turns.left_s("one", 94, 96) == 0
    assert turns.left_s("one", 90, 91) == 60


class World:
    """Two users of a published version who have acted since, in a Redis of their own."""

    def __init__(self, run, redis_server):
        self.bundle = run.bundle
        self.item_ids = run.item_ids
        self.version = run.bundle.manifest.version
        settings = StoreSettings(redis_url=redis_server.url, namespace="test")
        self.place = Place(Path(), Path(), settings)
        self.client = self.place.client()
        self.states = StateStore(self.client, self.place.keys)
        self.events = EventStore(self.client, self.place.keys, settings.retention)
        self.users = [USER, "somebody"]
        self.encoder = HistoryEncoder(run.bundle)
        self.events.seed((user_id, [pack_event(one) for one in before(run)]) for user_id in self.users)
        write_states(
            self.encoder, [History(user_id, 0, before(run), {}) for user_id in self.users], self.states
        )
        self.states.mark_published(self.version, run.bundle.manifest.fingerprint, len(self.users))
        self.states.activate(self.version, run.bundle.manifest.fingerprint)
        self.oracle = Oracle({self.version: run.bundle}, snapshot(self.client, self.place, [self.version]))
        self.acts = [three(run) for _ in self.users]
        self.acts[1].user_id = self.users[1]
        sent = [acted(run, number) for number in range(3)]
        self.record(dict.fromkeys(self.users, sent))
        self.refresh()

    def record(self, by_user, keep=KEEP):
        """What a service does; gives what becomes of each event."""
        settings = self.place.settings

        async def record():
            async with connect_async(settings, settings.redis_url) as client:
                return await AsyncEventStore(client, self.place.keys, Retention(keep)).record(by_user, 5.0)

        return asyncio.run(record())

    def refresh(self):
        """What a worker does."""
        write_states(self.encoder, self.events.histories(self.users, [self.version]), self.states)

    def found(self, activated=None, previous=None):
        """What is not as it should be, by name."""
        switched = activated or self.version, previous
        seen = examine(self.client, self.place, self.oracle, self.acts, switched)
        return {name: value for name, value in vars(seen).items() if value}


@pytest.fixture
def world(tiny, redis_server):
    """A world of the small run, in which all is well."""
    world = World(tiny, redis_server)
    assert world.found() == {}
    yield world
    world.client.close()


def test_lost_and_repeated_events_are_noticed(world):
    """An event that is gone, one that is there twice, and one that is in the wrong place, are each told."""
    history = world.place.keys.history(USER)
    stored = world.client.lrange(history, 0, -1)
    world.client.lrem(history, 1, stored[-2])
    assert world.found() == {"lost": 1, "lost_of": {USER}}
    world.client.rpush(history, stored[-2])
    assert world.found() == {"wrong_histories": 1}
    world.client.rpush(history, stored[-2])
    assert world.found() == {"duplicates": 1}


def test_a_late_event_in_the_wrong_place_is_noticed(world):
    """An event that happened before others must stand before them, in the history and in the states made of it."""
    late = RawEvent(before(world)[0].time_ms + 500, "late", world.item_ids[50], {"event_type": "buy"})
    (acts, _) = world.acts
    assert acts.record([late], 0.0) == ["stored"]
    acts.acknowledge(0.0)
    assert world.found() == {"lost": 1, "lost_of": {USER}}
    assert world.record({USER: [late]}) == [["stored"]]
    world.refresh()
    assert world.found() == {}
    history = world.place.keys.history(USER)
    world.client.lrem(history, 1, pack_event(late))
    world.client.rpush(history, pack_event(late))
    assert world.found() == {"wrong_histories": 1}


def test_what_users_tell_becomes_what_the_rules_say(world):
    """Late events, events told twice and events too old for a full history come to the same in Redis and in the oracle."""
    random = np.random.default_rng(0)
    tellings = Tellings(world.item_ids, random)
    keep = 40
    store = EventStore(world.client, world.place.keys, Retention(keep))
    acts = Acts("teller", keep, before(world))
    expected, found = [], []
    for number in range(150):
        own = tellings.of(acts)
        expected.append(acts.record(own, 0.0))
        found += world.record({"teller": own}, keep)
        if number % 25 == 0:
            store.seed([("teller", [pack_event(one) for one in before(world)])])
    assert found == expected
    assert {one for some in found for one in some} == {"stored", "duplicate", "too_old"}
    (history,) = store.histories(["teller"], [])
    assert history.events == list(acts.last.history)


def test_a_wrong_outcome_is_noticed():
    """What POST /events says of each event must be what the rules say; after a lost answer it may have been stored before."""
    one, other, old = (RawEvent(time_ms, str(time_ms), "item", {}) for time_ms in (1000, 2000, 500))
    acts = Acts(USER, 2)
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
    (right,) = world.states.get_many(world.version, [USER])
    published = world.oracle.snapshot.states[world.version][USER]
    world.client.set(keys.state(world.version, USER), published)
    assert world.found() == {"behind": 1}
    state = world.oracle.models[world.version].decode(published)
    sequence = world.oracle.models[world.version].decode(right).sequence
    lying = encode_state(replace(state, sequence=sequence), manifest.state, manifest.fingerprint_bytes)
    world.client.set(keys.state(world.version, USER), lying)
    assert world.found() == {"wrong_states": 1}
    world.client.set(keys.state(world.version, USER), right[:-1])
    assert world.found() == {"wrong_states": 1}
    world.client.delete(keys.state(world.version, USER))
    assert world.found() == {"behind": 1}


def test_what_is_remembered_is_noticed(world):
    """A state or an event of somebody who was forgotten is told, also where the user has acted since."""
    acts, _ = world.acts
    held = world.states.get_many(world.version, [USER])[0]
    world.events.forget(USER, [world.version])
    acts.forget(0.0)
    assert world.found() == {}
    state = world.place.keys.state(world.version, USER)
    world.client.set(state, held)
    assert world.found() == {"remembered": 1}
    world.client.delete(state)
    again = acts.steps[3].history[-1]
    assert world.record({USER: [again]}) == [acts.record([again], 0.0)] == [["stored"]]
    acts.acknowledge(0.0)
    assert world.found() == {"behind": 1}
    world.refresh()
    assert world.found() == {}
    world.client.lpush(world.place.keys.history(USER), pack_event(acts.steps[3].history[0]))
    assert world.found() == {"remembered": 1}


def test_what_else_is_left_is_noticed(world):
    """So are a count that is not the number of events, entries that were given up, and another version than was activated."""
    keys = world.place.keys
    first = int(world.client.get(keys.sequence(USER)).split()[0])
    world.client.set(keys.sequence(USER), f"{first} {first + 2}")
    world.client.xadd(keys.dead_letters(), {"user": USER, "reason": "planted"})
    assert world.found("another") == {"wrong_counts": 1, "dead_letters": 1, "wrong_pointer": 1}
    assert world.found(previous="another") == {"wrong_counts": 1, "dead_letters": 1, "wrong_pointer": 1}


def test_what_a_job_leaves_is_noticed(world):
    """Another active version than was switched to, a rollback that went forward again, and states that were to be removed."""
    trained = Trained(Path(), {world.version: world.bundle, "old": world.bundle}, {})

    def failures(kind, **switched):
        jobs = Jobs(world.place, trained, Turns([]), **switched)
        jobs.check(kind, world.states)
        return list(jobs.failures)

    right = {"active": world.version, "previous": None}
    assert failures("prune", **right) == failures("rollback", **right) == []
    (failure,) = failures("rollback", active="another", previous=world.version)
    assert failure == f"rollback: left {world.version} after None, and not another after {world.version}"
    (packed,) = world.states.get_many(world.version, [USER])
    world.states.put_many("old", [(USER, packed)])
    assert failures("prune", **right) == ["prune: left old"]
    world.states.drop("old")
    world.states.note_progress("begun", Progress("", "", 0))
    assert (failures("prune", **right), failures("publish", **right)) == (["prune: left begun"], [])
