"""`srp4ctr publish`: whatever it is cut off by, it completes when it is run again, and says published only of whole versions."""

import asyncio
import dataclasses

import numpy as np
import pytest

from srp4ctr.contract.errors import StoreError, StoreUnavailable, VersionIncomplete
from srp4ctr.contract.events import RawEvent, Retention, unpack_history
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.transforms import BEHAVIOUR
from srp4ctr.runtime.event_store import AsyncEventStore, EventStore
from srp4ctr.runtime.history_encoder import HistoryEncoder
from srp4ctr.runtime.redis_client import connect_async
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline import encode
from srp4ctr_offline import publish as job
from srp4ctr_offline.catch_up import catch_up
from srp4ctr_offline.histories import RawHistories
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.publish import Throttle, needed_bytes, publish
from srp4ctr_offline.snapshot_writer import Seeding


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So small that the few users of a test are several."""
    monkeypatch.setattr(encode, "WRITTEN_TOGETHER", 16)
    monkeypatch.setattr(job, "CHUNK", 50)


NOW_MS = 4_000_000_000_000


def seeding_of(tiny, store) -> Seeding:
    """The small run's raw histories, and where they go."""
    events = EventStore(store._client, Keys(), Retention(128))
    return Seeding(RawHistories.read(tiny.config, tiny.prepared, keep=128), events)


def record(store, user_id, event) -> None:
    """Have an event of the user acknowledged."""

    async def run():
        address = store._client.connection_pool.connection_kwargs["path"]
        url = f"unix://{address}"
        async with connect_async(StoreSettings(), url) as client:
            await AsyncEventStore(client, Keys(), Retention(128)).record({user_id: [event]}, 5.0)

    asyncio.run(run())


class CutOff(StateStore):
    """A store whose connection ends after some batches."""

    batches = 3

    def put_each(self, version, states, seedings=None):
        """Write, until the connection ends."""
        if not self.batches:
            raise StoreUnavailable("Redis: the connection was closed")
        self.batches -= 1
        return super().put_each(version, states, seedings)


def test_publish_goes_on_only_with_the_same_histories(tiny, store) -> None:
    """Users who were written without their histories would never have them."""
    seeding = seeding_of(tiny, store)

    def cut_off(seeding):
        cut = CutOff(store._client, Keys())
        cut.batches = 1
        with pytest.raises(StoreUnavailable):
            publish(tiny.bundle, tiny.prepared, cut, seeding)

    cut_off(None)
    assert publish(tiny.bundle, tiny.prepared, store, seeding).resumed_at == 0
    assert all(
        seeding.events.exist(
            [user for user in tiny.user_ids if tiny.prepared.event_counts()[tiny.user_ids.index(user)]]
        )
    )
    cut_off(seeding)
    assert publish(tiny.bundle, tiny.prepared, store, seeding).resumed_at > 0


def test_publish_may_be_rerun_and_activate_waits_for_it(tiny, store) -> None:
    """A version is refused until all its states are there; publishing again leaves them as they were."""
    manifest = tiny.bundle.manifest
    with pytest.raises(VersionIncomplete, match="srp4ctr publish"):
        store.activate(manifest.version, manifest.fingerprint)
    first = publish(tiny.bundle, tiny.prepared, store)
    states = store.get_many(manifest.version, tiny.user_ids)
    second = publish(tiny.bundle, tiny.prepared, store)
    assert first == second
    assert first.users == first.verified == len(tiny.user_ids)
    for before, after in zip(states, store.get_many(manifest.version, tiny.user_ids), strict=True):
        # All but created_at_ms and the checksum over it.
        assert before[:24] + before[32:60] + before[64:] == after[:24] + after[32:60] + after[64:]
    assert store.activate(manifest.version, manifest.fingerprint).version == manifest.version


def test_publish_goes_on_where_it_was_cut_off(tiny, store) -> None:
    """A publish that was cut off is not published; run again, it writes what was not written, and is whole."""
    version = tiny.bundle.manifest.version
    cut_off = CutOff(store._client, Keys())
    with pytest.raises(StoreUnavailable):
        publish(tiny.bundle, tiny.prepared, cut_off)
    assert store.published(version) is None
    there = sum(store.exist(version, tiny.user_ids))
    assert there == 3 * 16
    done = publish(tiny.bundle, tiny.prepared, store)
    assert (done.resumed_at, done.written) == (there, len(tiny.user_ids) - there)
    assert all(store.exist(version, tiny.user_ids))
    assert store.progress(version) is None
    assert store.published(version).users == len(tiny.user_ids)


def test_publish_restores_what_was_lost_meanwhile(tiny, store) -> None:
    """States that went while it was cut off are written again, though it had come past them."""
    version = tiny.bundle.manifest.version
    with pytest.raises(StoreUnavailable):
        publish(tiny.bundle, tiny.prepared, CutOff(store._client, Keys()))
    kept = [
        one for one, there in zip(tiny.user_ids, store.exist(version, tiny.user_ids), strict=True) if there
    ]
    for user_id in kept[:5]:
        store._client.delete(Keys().state(version, user_id))
    done = publish(tiny.bundle, tiny.prepared, store)
    assert done.written == len(tiny.user_ids) - len(kept) + 5
    assert all(store.exist(version, tiny.user_ids))


def test_publish_begins_anew_with_other_data(tiny, store) -> None:
    """What was written from other histories is not built on."""
    with pytest.raises(StoreUnavailable):
        publish(tiny.bundle, tiny.prepared, CutOff(store._client, Keys()))
    report = {**tiny.prepared.report, "data_fingerprint": "of other data"}
    other = dataclasses.replace(tiny.prepared, report=report)
    assert publish(tiny.bundle, other, store).resumed_at == 0


def test_publish_notices_lost_states(tiny, store) -> None:
    """States that Redis does not keep are noticed, and the version is not declared published."""

    class Forgetful(StateStore):
        """A store whose Redis evicts what it has just taken."""

        def put_each(self, version, states, seedings=None):
            """Write, and lose one."""
            states = list(states)
            outcomes = super().put_each(version, states, seedings)
            self._client.delete(self._keys.state(version, states[0][0]))
            return outcomes

    forgetful = Forgetful(store._client, Keys())
    with pytest.raises(StoreError, match="does not keep"):
        publish(tiny.bundle, tiny.prepared, forgetful)
    assert store.published(tiny.bundle.manifest.version) is None


def test_publish_notices_wrong_states(tiny, store) -> None:
    """States that somebody else overwrites are noticed, and the version is not declared published."""

    class Overwritten(StateStore):
        """A store below whose namespace something else writes."""

        def put_each(self, version, states, seedings=None):
            """Write, each user the state of the one before."""
            states = list(states)
            data = [one for _, one in states]
            return super().put_each(
                version, zip([one for one, _ in states], data[1:] + data[:1], strict=True), seedings
            )

    with pytest.raises(StoreError, match="not what the encoder gives"):
        publish(tiny.bundle, tiny.prepared, Overwritten(store._client, Keys()))
    assert store.published(tiny.bundle.manifest.version) is None


def test_publish_looks_for_room_before_it_writes(tiny, store) -> None:
    """Where Redis has too little memory for all states, nothing is written, and the error says how much is missing."""
    version = tiny.bundle.manifest.version
    used = store._client.info("memory")["used_memory"]
    store._client.config_set("maxmemory", used + 50_000)
    with pytest.raises(StoreError, match=r"states need about 0\.\d MB more, and Redis has 0\.\d MB left"):
        publish(tiny.bundle, tiny.prepared, store)
    assert not any(store.exist(version, tiny.user_ids))
    store._client.config_set("maxmemory", used + 50_000_000)
    publish(tiny.bundle, tiny.prepared, store)


def test_publish_needs_no_room_for_what_is_there(tiny, store) -> None:
    """Run again, it looks for room only for histories and states that Redis does not have."""
    seeding = seeding_of(tiny, store)
    limit = store._client.info("memory")["used_memory"] + 400_000
    store._client.config_set("maxmemory", limit)
    with pytest.raises(StoreError, match="states and histories need about"):
        publish(tiny.bundle, tiny.prepared, store, seeding)
    store._client.config_set("maxmemory", 0)
    publish(tiny.bundle, tiny.prepared, store, seeding)
    store._client.config_set("maxmemory", store._client.info("memory")["used_memory"] + 400_000)
    assert publish(tiny.bundle, tiny.prepared, store, seeding).users == len(tiny.user_ids)


def test_who_is_forgotten_meanwhile_stays_forgotten(tiny, store) -> None:
    """Of a user who is forgotten before, while and after publish writes the user, nothing is there when it ends."""
    seeding, version = seeding_of(tiny, store), tiny.bundle.manifest.version
    gone: list[str] = []

    class Forgetting(StateStore):
        """A store in which users are forgotten while publish writes its second batch."""

        def put_each(self, version, states, seedings=None):
            """Forget one of the batch before, one of this one, and one that is to come; and write."""
            states = list(states)
            batches.append([user_id for user_id, _ in states])
            if len(batches) == 2:
                written = {user_id for batch in batches for user_id in batch}
                to_come = next(one for one in reversed(tiny.user_ids) if one not in written)
                gone.extend([batches[0][3], batches[1][3], to_come])
                for user_id in gone:
                    seeding.events.forget(user_id, [version])
                # This one comes back at once.
                record(store, to_come, RawEvent(NOW_MS, "again", tiny.item_ids[0], {}))
            return super().put_each(version, states, seedings)

    batches: list[list[str]] = []
    publish(tiny.bundle, tiny.prepared, Forgetting(store._client, Keys()), seeding)
    assert store.published(version) is not None
    assert sum(store.exist(version, tiny.user_ids)) == len(tiny.user_ids) - 3
    assert not any(store.exist(version, gone))
    assert seeding.events.exist(gone) == [False, False, True]
    assert catch_up(tiny.bundle, seeding.events, store).written == 1
    (data,) = store.get_many(version, gone[2:])
    assert tiny.bundle.manifest.decode_state(data).events == 1
    # Nor does a publish that begins later bring them back.
    publish(tiny.bundle, tiny.prepared, store, seeding)
    assert store.exist(version, gone) == [False, False, True]


class Pruned(StateStore):
    """A store from which somebody removes the version while it is published: after so many batches, or when all is written."""

    after, when_verified = 3, False

    def put_each(self, version, states, seedings=None):
        """Write, and have it removed in between."""
        self.after -= 1
        if not self.after:
            self.drop(version)
        return super().put_each(version, states, seedings)

    def forgotten(self, user_ids):
        """Asked last of all, of nobody where everything is right."""
        if self.when_verified and not len(user_ids):
            self.drop(self.version)
        return super().forgotten(user_ids)


def test_a_version_that_is_removed_meanwhile_is_not_published_without_states(tiny, store) -> None:
    """Whenever somebody prunes it: what went is written again, or publish says that it must be run again."""
    version, fingerprint = tiny.bundle.manifest.version, tiny.bundle.manifest.fingerprint
    keys = Keys()
    pruned = Pruned(store._client, keys)
    publish(tiny.bundle, tiny.prepared, pruned)
    assert all(store.exist(version, tiny.user_ids))
    assert store.published(version) is not None
    # Removed when all has been verified.
    pruned.when_verified, pruned.version = True, version
    with pytest.raises(StoreError, match="publish it again"):
        publish(tiny.bundle, tiny.prepared, pruned)
    with pytest.raises(VersionIncomplete):
        store.activate(version, fingerprint)
    # While it is being removed.
    store._client.set(keys.removing(version), "", ex=60)
    with pytest.raises(StoreError, match="publish it again when that is done"):
        publish(tiny.bundle, tiny.prepared, store)
    assert store.published(version) is None
    store._client.delete(keys.removing(version))
    publish(tiny.bundle, tiny.prepared, store)
    assert store.activate(version, fingerprint).version == version


def test_what_was_written_before_publish_was_cut_off_is_verified_too(tiny, store) -> None:
    """States of users who have acted are compared with what their histories give, not taken on trust."""
    seeding, version = seeding_of(tiny, store), tiny.bundle.manifest.version
    publish(tiny.bundle, tiny.prepared, store, seeding)
    for user_id in tiny.user_ids[:50]:
        record(store, user_id, RawEvent(NOW_MS, f"e-{user_id}", tiny.item_ids[0], {"event_type": "click"}))
    catch_up(tiny.bundle, seeding.events, store)
    cut = CutOff(store._client, Keys())
    cut.batches = 20
    with pytest.raises(StoreUnavailable):
        publish(tiny.bundle, tiny.prepared, cut, seeding)
    cold = tiny.bundle.cold_state
    spoilt = 0
    for user_id, data in zip(tiny.user_ids, store.get_many(version, tiny.user_ids), strict=True):
        state = tiny.bundle.manifest.decode_state(data)
        if state.sequence:
            wrong = dataclasses.replace(state, arrays=cold.arrays)
            store._client.set(Keys().state(version, user_id), tiny.bundle.manifest.encode_state(wrong))
            spoilt += 1
    assert spoilt == 50
    with pytest.raises(StoreError, match="read back are not what the encoder gives"):
        publish(tiny.bundle, tiny.prepared, store, seeding)


def test_histories_belong_to_no_version(tiny, store) -> None:
    """A version that reads fewer events and fewer features leaves what the active one reads of everybody."""
    seeding = seeding_of(tiny, store)
    publish(tiny.bundle, tiny.prepared, store, seeding)
    users = np.arange(len(tiny.user_ids))
    longest = int(np.argmax(tiny.prepared.event_counts()))
    before = seeding.histories.packed(users)
    assert len(before[longest].splitlines()) > tiny.prepared.max_events
    fewer = tiny.config.features.model_copy(
        update={"max_events": 3, "behaviour_features": tiny.config.features.behaviour_features[:1]}
    )
    config = tiny.config.model_copy(update={"features": fewer})
    prepared = prepare(config)
    others = tiny.bundle.transforms.features(BEHAVIOUR)
    assert RawHistories.read(config, prepared, 128, others).packed(users) == before
    # Where their features are not in its tables, those that were there before stay.
    seeding.events.seed(
        zip(tiny.user_ids, RawHistories.read(config, prepared, 128).packed(users), strict=True)
    )
    for user_id, packed in zip(tiny.user_ids, before, strict=True):
        stored = store._client.lrange(Keys().history(user_id), 0, -1)
        assert unpack_history(stored) == unpack_history(packed.splitlines())


def test_a_newer_state_in_place_gets_what_the_snapshot_has(tiny, store) -> None:
    """A state that counts more events than the snapshot is made anew of both; one whose history went gives way to the snapshot."""
    seeding, manifest = seeding_of(tiny, store), tiny.bundle.manifest
    counts = tiny.prepared.event_counts()
    one, other = np.flatnonzero((counts > 4) & (counts < 11))[:2]
    users = [tiny.user_ids[one], tiny.user_ids[other]]
    # An older snapshot, and an event since.
    seeding.events.seed(
        (user_id, b"\n".join(events.splitlines()[:2]))
        for user_id, events in zip(users, seeding.histories.packed(np.array([one, other])), strict=True)
    )
    for user_id in users:
        record(store, user_id, RawEvent(NOW_MS, f"e-{user_id}", tiny.item_ids[0], {"event_type": "click"}))
    assert catch_up(tiny.bundle, seeding.events, store).written == 2
    store._client.delete(Keys().history(users[1]), Keys().sequence(users[1]))

    publish(tiny.bundle, tiny.prepared, store, seeding)
    assert list(seeding.events.users_behind(manifest.version)) == [[]]
    states = [manifest.decode_state(data) for data in store.get_many(manifest.version, users)]
    assert [state.events for state in states] == [counts[one] + 1, counts[other]]
    assert states[0].last_event_at_ms == NOW_MS
    assert states[1].sequence == 0
    (history,) = seeding.events.histories(users, [manifest.version])
    assert len(history.events) == counts[one] + 1
    (expected,) = HistoryEncoder(tiny.bundle).encode([history])
    for name, array in expected.state.arrays.items():
        np.testing.assert_allclose(states[0].arrays[name], array, atol=2e-3)


def test_needed_memory_is_what_redis_takes(tiny, store) -> None:
    """The bytes that are looked for are no fewer than Redis then says it uses, and not many more."""
    version = tiny.bundle.manifest.version
    publish(tiny.bundle, tiny.prepared, store)
    taken = [store._client.memory_usage(Keys().state(version, user_id)) for user_id in tiny.user_ids]
    state_bytes = tiny.prepared.mean_state_bytes(tiny.bundle.manifest.state)
    assert sum(taken) <= needed_bytes(len(taken), state_bytes) < 1.25 * sum(taken)


def test_publish_yields_while_redis_is_slow() -> None:
    """Pauses grow while Redis is slow, and go when it is quick again."""
    latencies = iter([0.001, 0.02, 0.02, 0.001, 0.001, 0.001, 0.001, 0.001])
    throttle = Throttle(lambda: next(latencies), max_latency_s=0.01)
    paused = []
    for _ in range(8):
        before = throttle.paused_s
        throttle.wait()
        paused.append(round(throttle.paused_s - before, 4))
    assert paused[:5] == [0, 0.01, 0.02, 0.01, 0.005]
    assert paused[-1] == 0
