"""Users' prepared histories to their states, by a bundle's own encoder."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.state import UserState
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.history_encoder import BATCH, Encoded
from srp4ctr.runtime.sessions import OnnxEncoder
from srp4ctr_offline.prepared import Ints, Prepared

WRITTEN_TOGETHER = 128
"""Users of a batch, which is encoded in parts of BATCH."""

Users = NDArray[np.int64]
"""Places of users in the prepared data."""


class Batch(NamedTuple):
    """Users, and their states in the same order."""

    users: Users
    encoded: list[Encoded]


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

    def batches(self, users: Users) -> Iterator[Batch]:
        """The users' states, in their order."""
        for at in range(0, len(users), WRITTEN_TOGETHER):
            some = users[at : at + WRITTEN_TOGETHER]
            parts = (some[begin : begin + BATCH] for begin in range(0, len(some), BATCH))
            yield Batch(some, [one for part in parts for one in self.encode(part, self._counts[part])])

    def encode(self, users: Users, ends: Ints) -> list[Encoded]:
        """The users' states after each one's first `ends` events."""
        prepared, manifest, events = self._prepared, self._manifest, self._prepared.events
        items, behaviours, _ = prepared.histories(users, ends)
        arrays = self._encoder(items, behaviours, np.ascontiguousarray(prepared.users.codes[users]))
        now = time.time_ns() // 1_000_000
        lengths = prepared.lengths(ends)
        batch = []
        for place, user in enumerate(users):
            kept = int(lengths[place])
            encoding = manifest.state.of_user(arrays, place, kept)
            last = int(events.time_ms[events.start[user] + ends[place] - 1]) if ends[place] else -1
            state = UserState(
                arrays=encoding.arrays,
                events=kept,
                length=encoding.length,
                created_at_ms=now,
                last_event_at_ms=None if last < 0 else last,
            )
            batch.append(Encoded(prepared.users.ids[user].decode(), state))
        return batch
