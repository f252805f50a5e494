"""Writes a snapshot's users to Redis: raw histories and states, merged with what was acknowledged since."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.event_store import EventStore, Seeded
from srp4ctr.runtime.history_encoder import HistoryEncoder, write_states
from srp4ctr.runtime.state_store import CHANGED, FORGOTTEN, NEWER, StateStore
from srp4ctr_offline.catch_up import with_items_in_use
from srp4ctr_offline.encode import Batch
from srp4ctr_offline.histories import RawHistories


@dataclass(frozen=True)
class Seeding:
    """Raw histories, and the store that they are to be in."""

    histories: RawHistories
    events: EventStore


class SnapshotWriter:
    """Writes batches of users: their raw histories first, so that a state counts no event that it lacks.

    Of users who were forgotten a short while ago nothing is written. Where a newer state is in place, the user is encoded anew
    from what the snapshot and the events acknowledged since come to: either alone would lack the other.
    """

    def __init__(self, store: StateStore, bundle: Bundle, users: int, seeding: Seeding | None) -> None:
        self._store = store
        self._bundle = bundle
        self._manifest = bundle.manifest
        self.seeding = seeding
        self._merged: HistoryEncoder | None = None
        self.sequences = np.zeros(users, np.int64)
        """Of the states that were written, by user."""

    def write(self, batch: Batch) -> None:
        """Write one batch."""
        manifest, ids = self._manifest, [one.user_id for one in batch.encoded]
        seeded = [Seeded(0, 0)] * len(ids)
        if self.seeding is not None:
            packed = self.seeding.histories.packed(batch.users)
            seeded = self.seeding.events.seed(zip(ids, packed, strict=True))
        self.sequences[batch.users] = [one.sequence for one in seeded]
        states = [
            (one.user_id, manifest.encode_state(replace(one.state, sequence=of.sequence)), of.seedings)
            for one, of in zip(batch.encoded, seeded, strict=True)
            if of.sequence != FORGOTTEN
        ]
        outcomes = self._store.put_each(
            manifest.version,
            [(user_id, data) for user_id, data, _ in states],
            None if self.seeding is None else [seedings for *_, seedings in states],
        )
        newer = {
            user_id: data
            for (user_id, data, _), one in zip(states, outcomes, strict=True)
            if one in (NEWER, CHANGED)
        }
        if newer and self.seeding is not None:
            self._merge(newer, self.seeding.events)

    def of_histories(self) -> HistoryEncoder:
        """An encoder of what Redis has of users."""
        if self._merged is None:
            self._merged = HistoryEncoder(with_items_in_use(self._bundle, self._store))
        return self._merged

    def _merge(self, newer: Mapping[str, bytes], events: EventStore) -> None:
        version = self._manifest.version
        # The features of a user are the snapshot's.
        histories = [
            one._replace(states={version: newer[one.user_id]}) for one in events.histories(list(newer), [])
        ]
        write_states(self.of_histories(), histories, self._store, events)
