"""Users' histories to the bytes of their states, by a bundle's own encoder."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.state import UserState, encode_state
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.sessions import OnnxEncoder
from srp4ctr_offline.prepared import Prepared

BATCH = 64
"""Users that are encoded together: what the layers pass on stays in the cache, and 256 are a quarter slower."""

Users = NDArray[np.int64]
"""Places of users in the prepared data."""


class Encoded(NamedTuple):
    """A user's id, and the bytes of the user's state."""

    user_id: str
    data: bytes


class UserEncoder:
    """Encodes users of prepared data; raises DataError where those are not in the bundle's codes."""

    def __init__(self, bundle: Bundle, prepared: Prepared, threads: int) -> None:
        if bundle.transforms.digest() != prepared.transforms.digest():
            raise DataError(
                f"the prepared histories are not in the codes of {bundle.manifest.version}; "
                "prepare, fine-tune and export again, or name the run of this bundle with --run"
            )
        self._encoder = OnnxEncoder(bundle, threads)
        self._manifest = bundle.manifest
        self._prepared = prepared
        self._counts = prepared.event_counts()

    def order(self) -> Users:
        """All users, those with histories of similar length beside each other; the same order each time."""
        return np.argsort(self._counts, kind="stable")

    def batches(self, users: Users) -> Iterator[list[Encoded]]:
        """The users' states, in their order."""
        for at in range(0, len(users), BATCH):
            yield self._batch(users[at : at + BATCH])

    def _batch(self, users: Users) -> list[Encoded]:
        prepared, manifest, events = self._prepared, self._manifest, self._prepared.events
        counts = self._counts[users]
        items, behaviours, _ = prepared.histories(users, counts)
        arrays = self._encoder(items, behaviours, np.ascontiguousarray(prepared.users.codes[users]))
        now = time.time_ns() // 1_000_000
        lengths = prepared.lengths(counts)
        batch = []
        for place, user in enumerate(users):
            kept = int(lengths[place])
            encoding = manifest.state.of_user(arrays, place, kept)
            last = int(events.time_ms[events.start[user + 1] - 1]) if counts[place] else -1
            state = UserState(
                arrays=encoding.arrays,
                events=kept,
                length=encoding.length,
                created_at_ms=now,
                last_event_at_ms=None if last < 0 else last,
            )
            data = encode_state(state, manifest.state, manifest.fingerprint_bytes)
            batch.append(Encoded(prepared.users.ids[user].decode(), data))
        return batch
