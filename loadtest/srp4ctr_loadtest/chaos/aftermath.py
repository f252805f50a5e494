"""What Redis holds when everything is calm again: every acknowledged event once, and states that have them all."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import redis

from srp4ctr.contract.errors import ServiceNotReady, StateError, StoreError
from srp4ctr.contract.events import RawEvent, unpack_history
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.event_store import Counted
from srp4ctr.runtime.state_store import StateStore
from srp4ctr.runtime.version_records import Active
from srp4ctr_loadtest.chaos.acts import Acts
from srp4ctr_loadtest.chaos.oracle import Model, Oracle, Snapshot
from srp4ctr_loadtest.chaos.place import Place

CALM_LIMIT_S = 120.0
POLL_S = 0.2
CONTEXT = {"hour": 12, "device": "mobile"}


@dataclass
class Aftermath:
    """How much is not as it should be."""

    lost: int = 0
    """Acknowledged events that are not in their user's history."""
    duplicates: int = 0
    """Events that are there more than once."""
    wrong_histories: int = 0
    """Histories that have every event once, and are not what they should be all the same."""
    wrong_counts: int = 0
    """Users whose acknowledged events have been counted as more or fewer than they are."""
    behind: int = 0
    """States of the active version and of the one before it that lack acknowledged events, or are not there, by what they say."""
    wrong_states: int = 0
    """Those that lack none by what they say, and are not what they should be."""
    remembered: int = 0
    """Users who were forgotten, and of whom there is still something in Redis, or again."""
    dead_letters: int = 0
    wrong_pointer: int = 0
    """1 where the active version or the one before it are not those that were switched to last, or the active one is not whole."""
    lost_of: set[str] = field(default_factory=set)
    """Users who lost events."""


def snapshot(client: redis.Redis, place: Place, versions: Sequence[str]) -> Snapshot:
    """What publish has written of all users, before anybody acts."""
    store = StateStore(client, place.keys)
    users = sorted(store.users(versions[0]))
    states = {
        version: {
            user_id: data
            for user_id, data in zip(users, store.get_many(version, users), strict=True)
            if data is not None
        }
        for version in versions
    }
    return Snapshot({user_id: _history(client, place, user_id) for user_id in users}, states)


def wait_for_workers(client: redis.Redis, place: Place) -> None:
    """Return when workers have finished all entries; raises ServiceNotReady where they do not."""
    streams = ActedStreams(client, place.keys, "chaos")
    give_up_at = time.monotonic() + CALM_LIMIT_S
    while waiting := streams.waiting():
        if time.monotonic() > give_up_at:
            raise ServiceNotReady(f"{waiting} entries were not refreshed in {CALM_LIMIT_S:.0f} s")
        time.sleep(POLL_S)


def examine(
    client: redis.Redis,
    place: Place,
    oracle: Oracle,
    everybody: Sequence[Acts],
    switched: tuple[str | None, str | None],
) -> Aftermath:
    """Look at all that Redis has of these users, whose every event has been acknowledged.

    `switched`: the version that must be active, and the one before it.
    """
    found = Aftermath()
    found.dead_letters, _ = ActedStreams(client, place.keys, "chaos").dead_letters(1)
    active = StateStore(client, place.keys).active()
    found.wrong_pointer = int(not _whole(client, place, oracle, active, switched))
    versions = [] if active is None else [one for one in (active.version, active.previous) if one is not None]
    for acts in everybody:
        _examine_history(found, client, place, acts)
        for version in versions:
            _examine_state(found, client, place, oracle.models[version], acts)
    return found


def _whole(
    client: redis.Redis,
    place: Place,
    oracle: Oracle,
    active: Active | None,
    switched: tuple[str | None, str | None],
) -> bool:
    if active is None or (active.version, active.previous) != switched:
        return False
    try:
        StateStore(client, place.keys).require_published(active.version, active.fingerprint)
    except StoreError:
        return False
    return active.fingerprint == oracle.models[active.version].bundle.manifest.fingerprint


def _examine_history(found: Aftermath, client: redis.Redis, place: Place, acts: Acts) -> None:
    stored = _history(client, place, acts.user_id)
    expected = list(acts.last.history)
    times = Counter(event.event_id for event in stored if event.event_id)
    missing = sum(event.event_id not in times for event in expected if event.event_id)
    twice = sum(count - 1 for count in times.values())
    found.lost += missing
    found.duplicates += twice
    if missing:
        found.lost_of.add(acts.user_id)
    elif acts.last.since and any(event not in expected for event in stored):
        found.remembered += 1
    elif not twice and stored != expected:
        found.wrong_histories += 1
    if not missing:
        counted = _counted(client, place, acts.user_id)
        events = 0 if counted is None else counted.last - counted.first
        found.wrong_counts += events != acts.last.counted


def _examine_state(found: Aftermath, client: redis.Redis, place: Place, model: Model, acts: Acts) -> None:
    if acts.user_id in found.lost_of:
        return
    (data,) = StateStore(client, place.keys).get_many(model.version, [acts.user_id])
    since, last = acts.last.since, len(acts.steps) - 1
    if data is None:
        found.behind += last > since or (not since and model.knows(acts.user_id))
        return
    if last == since > 0:
        found.remembered += 1
        return
    counted = _counted(client, place, acts.user_id)
    items = model.bundle.items.index.ids
    try:
        state = model.decode(data)
    except StateError:
        found.wrong_states += 1
        return
    if counted is not None and counted.behind(state.sequence):
        found.behind += 1
        return
    vectors = model.vectors([item.decode() for item in items[1:].tolist()])
    expected = model.state(acts, last)
    right = model.same(model.score(state, vectors, CONTEXT), model.score(expected, vectors, CONTEXT))
    found.wrong_states += not right


def _history(client: redis.Redis, place: Place, user_id: str) -> list[RawEvent]:
    stored: list[bytes] = client.lrange(place.keys.history(user_id), 0, -1)  # type: ignore[assignment]
    return unpack_history(stored)


def _counted(client: redis.Redis, place: Place, user_id: str) -> Counted | None:
    stored = client.get(place.keys.sequence(user_id))
    return None if stored is None else Counted.read(stored)  # type: ignore[arg-type]
