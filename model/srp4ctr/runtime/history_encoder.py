"""Raw histories to user states, by a bundle's own transforms, item table and encoder."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import StateError
from srp4ctr.contract.events import RawEvent, Value, latest
from srp4ctr.contract.manifest import Manifest
from srp4ctr.contract.schema import CategoricalFeature, NumericFeature
from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import BEHAVIOUR, canonical_text
from srp4ctr.contract.vocabulary import PADDING, Codes, to_texts
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.event_store import EventStore, History
from srp4ctr.runtime.sessions import OnnxEncoder
from srp4ctr.runtime.state_store import CHANGED, WRITTEN, StateStore

BATCH = 16
"""Users that are encoded together: what the layers pass on stays in the cache, and 64 are a tenth slower at 100 events."""


class Encoded(NamedTuple):
    """A user's id, and the user's state."""

    user_id: str
    state: UserState


class HistoryEncoder:
    """Encodes users from what they did; their features are those of the state that they had."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._encoder = OnnxEncoder(bundle, threads)
        self._bundle = bundle
        self._cold = bundle.cold_state.arrays.get("user_codes")

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self._bundle.manifest.version

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._bundle.manifest

    def encode(self, histories: Sequence[History]) -> list[Encoded]:
        """The states of the users, those with histories of similar length together."""
        by_length = sorted(histories, key=lambda history: len(history.events))
        return [
            one for at in range(0, len(by_length), BATCH) for one in self._batch(by_length[at : at + BATCH])
        ]

    def _batch(self, histories: Sequence[History]) -> list[Encoded]:
        manifest, keep = self._bundle.manifest, self._bundle.transforms.schema.max_events
        kept = [history.events[-keep:] for history in histories]
        users = np.stack([self._user_codes(history) for history in histories])
        arrays = self._encoder(*self._codes(kept), users)
        now = time.time_ns() // 1_000_000
        states = []
        for place, (history, events) in enumerate(zip(histories, kept, strict=True)):
            encoding = manifest.state.of_user(arrays, place, len(events))
            state = UserState(
                arrays=encoding.arrays,
                events=len(events),
                length=encoding.length,
                created_at_ms=now,
                last_event_at_ms=latest(events),
                sequence=history.sequence,
            )
            states.append(Encoded(history.user_id, state))
        return states

    def _codes(self, histories: Sequence[Sequence[RawEvent]]) -> tuple[Codes, Codes]:
        """Item codes [U, L, Wi] and behaviour codes [U, L, Wb], padded on the left; L is that of the longest."""
        lengths = np.array([len(events) for events in histories])
        longest = int(lengths.max())
        # Row by row, as the events follow one another below.
        there = np.arange(longest) >= (longest - lengths)[:, None]
        events = [event for own in histories for event in own]
        items = self._bundle.items.codes[self._bundle.items.rows([event.item_id for event in events])]
        return _placed(items, there), _placed(self._behaviours(events), there)

    def _behaviours(self, events: Sequence[RawEvent]) -> Codes:
        """Codes [E, Wb]; a value of a kind that this schema does not have there is missing."""
        transforms = self._bundle.transforms
        parts = []
        for feature in transforms.features(BEHAVIOUR):
            values = [event.features.get(feature.name) for event in events]
            if isinstance(feature, NumericFeature):
                numbers = np.array([_number(value) for value in values], np.float64)
                parts.append(transforms.encode_numeric(BEHAVIOUR, feature, numbers))
            else:
                assert isinstance(feature, CategoricalFeature)
                texts = to_texts([_text(value) for value in values])
                parts.append(transforms.encode_categorical(BEHAVIOUR, feature, texts))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(events), 0), np.int32)

    def _user_codes(self, history: History) -> NDArray[np.int32]:
        if self._cold is None:
            return np.empty(0, np.int32)
        held = history.states.get(self.version)
        if held is not None:
            try:
                state = self.manifest.decode_state(held)
            except StateError:
                # It cannot be scored with either; it is about to be replaced.
                pass
            else:
                return np.asarray(state.arrays["user_codes"], np.int32)
        return np.asarray(self._cold, np.int32)


def write_states(
    encoder: HistoryEncoder, histories: Sequence[History], states: StateStore, events: EventStore
) -> int:
    """Encode the histories and write the states, unless newer ones are there; gives how many were written.

    Histories that a snapshot changes meanwhile are read and encoded once more.
    """
    written = 0
    while histories:
        packed = {one.user_id: encoder.manifest.encode_state(one.state) for one in encoder.encode(histories)}
        seedings = {one.user_id: one.seedings for one in histories}
        outcomes = states.put_each(encoder.version, packed.items(), [seedings[user_id] for user_id in packed])
        written += outcomes.count(WRITTEN)
        changed = [user_id for user_id, one in zip(packed, outcomes, strict=True) if one == CHANGED]
        histories = events.histories(changed, [encoder.version])
    return written


def _placed(codes: Codes, there: NDArray[np.bool_]) -> Codes:
    placed = np.full((*there.shape, codes.shape[1]), PADDING, np.int32)
    placed[there] = codes
    return placed


# A history is of no version: what one version reads as a number, another may have written as a category, and the other way round.
def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return np.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return np.nan
    return number if np.isfinite(number) else np.nan


def _text(value: Value) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return canonical_text(value) if isinstance(value, str | int) else ""
