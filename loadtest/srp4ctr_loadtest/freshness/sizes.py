"""Bytes that Redis needs for a user: by the formula of the state's layout, and as MEMORY USAGE says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import redis

from srp4ctr.contract.manifest import Manifest
from srp4ctr.contract.state import HEADER_BYTES, DType, StateLayout, UserState, encode_state
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.freshness.workplace import Workplace
from srp4ctr_loadtest.subject import Subject

SAMPLE = 1000
DTYPES: tuple[DType, ...] = ("float16", "int8")


@dataclass(frozen=True)
class Size:
    """Bytes, the mean over the sampled users: of the value itself by formula, and of its key in Redis."""

    formula: float
    memory_usage: float


@dataclass(frozen=True)
class Sizes:
    """States as they are published and as they would be in other types of numbers, and raw histories."""

    users: int
    published: Size
    states: dict[str, Size]
    histories: Size
    mean_events: float


def measure(workplace: Workplace, subject: Subject) -> Sizes:
    """Look at some of the published users; what is written for it is removed."""
    users = np.random.default_rng(0).permutation(np.array(subject.users)).tolist()[:SAMPLE]
    manifest, client, keys = subject.bundle.manifest, workplace.client, workplace.keys
    stored = StateStore(client, keys).get_many(manifest.version, users)
    there = [data for data in stored if data is not None]
    assert len(there) == len(users), "a published user has a state"
    states = [manifest.decode_state(one) for one in there]
    pipeline = client.pipeline(transaction=False)
    for user in users:
        pipeline.lrange(keys.history(user), 0, -1)
    histories: list[list[bytes]] = pipeline.execute()
    with_events = [user for user, events in zip(users, histories, strict=True) if events]
    return Sizes(
        users=len(users),
        published=Size(
            _mean([len(one) for one in there]),
            memory_usage(client, [keys.state(manifest.version, user) for user in users]),
        ),
        states={dtype: _states(workplace, manifest, dtype, users, states) for dtype in DTYPES},
        histories=Size(
            _mean([sum(map(len, events)) for events in histories if events]),
            memory_usage(client, [keys.history(user) for user in with_events]),
        ),
        mean_events=_mean([len(events) for events in histories]),
    )


def _states(
    workplace: Workplace,
    manifest: Manifest,
    dtype: DType,
    users: Sequence[str],
    states: Sequence[UserState],
) -> Size:
    """The same states with their real numbers in that type, in a database where nothing else is."""
    layout, encoded = retyped(manifest, dtype, states)
    keys = workplace.keys
    with connect(workplace.settings, f"{workplace.url}?db=1") as client:
        try:
            packed = list(zip(users, encoded, strict=True))
            assert StateStore(client, keys).put_many(manifest.version, packed) == len(users)
            used = memory_usage(client, [keys.state(manifest.version, user) for user in users])
        finally:
            client.flushdb()
    return Size(_mean([HEADER_BYTES + layout.payload_bytes(one.length) for one in states]), used)


def retyped(manifest: Manifest, dtype: DType, states: Sequence[UserState]) -> tuple[StateLayout, list[bytes]]:
    """The states' bytes with their real numbers in that type, and that layout; none of their events are counted."""
    arrays = tuple(
        one if one.holds_codes else one.model_copy(update={"dtype": dtype}) for one in manifest.state.arrays
    )
    layout = StateLayout(kind=manifest.state.kind, arrays=arrays)
    fingerprint = manifest.fingerprint_bytes
    return layout, [encode_state(replace(one, sequence=0), layout, fingerprint) for one in states]


def memory_usage(client: redis.Redis, keys: Sequence[str]) -> float:
    """Bytes that Redis takes for a key, the mean."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        # All elements of a list, not some of them.
        pipeline.memory_usage(key, samples=0)
    return _mean(pipeline.execute())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
