"""What an answer may be, computed offline from what the harness itself has sent."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.events import RawEvent
from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import CONTEXT
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.event_store import History
from srp4ctr.runtime.history_encoder import HistoryEncoder
from srp4ctr.runtime.items import ItemTable, Vectors
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr_loadtest.chaos.acts import Acts, Step
from srp4ctr_loadtest.chaos.catalogues import Catalogues
from srp4ctr_loadtest.chaos.traffic import Observation
from srp4ctr_loadtest.chaos.turns import FOLLOW_S

TOLERANCE = 1e-5
QUANTISED_TOLERANCE = 1e-4
"""Between two probabilities that are the same, where states are not int8 and where they are. Users who are encoded in other
company differ in the last bits of float32, and now and then a number of a state then rounds to its other neighbour, which
moves a probability by up to 2e-6 in float16 and 5e-5 in int8. One more event moves one of twenty by 3e-4 and more in the
versions whose states are float16 and by 1e-4 and more in the other, and another version moves it by 5e-2."""
NOTICE_S = 0.1
"""Until Redis must have told each process of the service what has changed; it does so at once, and waits for nobody."""
AWAY_S = 1.0
"""Until a process that has lost Redis must have found it again: it tries five times a second, when it is asked."""
CLOCK_S = 0.05
"""By which the clocks may differ that the age of a state is measured by: the service's, and the harness's."""
ENCODING_S = 5.0
"""In which a history that was read has become a state, on a busy machine."""
NO_STATE = {"redis_unavailable", "deadline"}
"""Why a state could not be read though it is not damaged."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """What publish wrote: raw histories by user, and the bytes of states by version and user."""

    histories: Mapping[str, Sequence[RawEvent]]
    states: Mapping[str, Mapping[str, bytes]]


class Verdict(NamedTuple):
    """Whether an answer is right, and why it is not.

    `late`: it is right but for events that were acknowledged so shortly before, `late_s` seconds, that the process which
    answered had not been told. `cautious`: but for saying that it lacks events that it has: they were taken in between two
    reads of who encoded it, of the count and of the history.
    """

    outcome: Literal["right", "late", "cautious", "wrong", "mixed"]
    reason: str = ""
    late_s: float = 0.0


class Model:
    """One version, run offline."""

    def __init__(self, bundle: Bundle, snapshot: Snapshot) -> None:
        self.bundle = bundle
        self.version = bundle.manifest.version
        quantised = any(array.dtype == "int8" for array in bundle.manifest.state.arrays)
        self._tolerance = QUANTISED_TOLERANCE if quantised else TOLERANCE
        self._states = snapshot.states[self.version]
        self._encoder = HistoryEncoder(bundle)
        self._scorer = OnnxScorer(bundle)
        self._encoded: dict[tuple[str, int], UserState] = {}
        self._began_at = time.time() - time.monotonic()
        """When the monotonic clock was 0."""

    def state(self, acts: Acts, place: int) -> UserState:
        """The user's state from that step on; the cold one where there is nothing at all."""
        key = acts.user_id, place
        if key not in self._encoded:
            self._encoded[key] = self._encode(
                acts.user_id, acts.steps[place], first=place == acts.steps[place].since
            )
        return self._encoded[key]

    def encoded_after_s(self, acts: Acts, place: int) -> float:
        """The earliest time at which a state of that step may have been encoded, by the monotonic clock."""
        published = None if place else self._states.get(acts.user_id)
        if published is None:
            return acts.steps[place].sent_at
        return self.decode(published).created_at_ms / 1000 - self._began_at

    def knows(self, user_id: str) -> bool:
        """Whether the user was in the snapshot."""
        return user_id in self._states

    def vectors(self, item_ids: Sequence[str], items: ItemTable | None = None) -> Vectors:
        """What a scorer takes of the items; of the bundle's own, where no others are given."""
        items = items or self.bundle.items
        return items.vectors[items.rows(item_ids)]

    def score(self, state: UserState, vectors: Vectors, context: Mapping[str, object]) -> Scores:
        """Probabilities in that context."""
        codes = self.bundle.transforms.encode_values(CONTEXT, context, CONTEXT)
        return self._scorer(state, vectors, codes[None])

    def same(self, scores: Scores, expected: Scores) -> bool:
        """Whether two arrays of its probabilities are the same but for rounding."""
        return scores.shape == expected.shape and bool(np.abs(scores - expected).max() <= self._tolerance)

    def fits(self, items: ItemTable, states: "Model") -> bool:
        """Whether its scorer could run with the items and the states of others."""
        widths = {one.vectors.shape[1] for one in (self.bundle.items, items)}
        return len(widths) == 1 and self.bundle.manifest.state == states.bundle.manifest.state

    def decode(self, data: bytes) -> UserState:
        """A state of this version."""
        return self.bundle.manifest.decode_state(data)

    def _encode(self, user_id: str, step: Step, *, first: bool) -> UserState:
        """As it was published, where nothing has come since."""
        published = None if step.since else self._states.get(user_id)
        if first:
            return self.bundle.cold_state if published is None else self.decode(published)
        # For the user's features.
        held = {} if published is None else {self.version: published}
        (encoded,) = self._encoder.encode([History(user_id, 0, 0, list(step.history), held)])
        # As it is stored.
        return self.decode(self.bundle.manifest.encode_state(encoded.state))


class Oracle:
    """Judges answers, and knows what states should be."""

    def __init__(
        self, bundles: Mapping[str, Bundle], snapshot: Snapshot, catalogues: Catalogues | None = None
    ) -> None:
        """Without `catalogues`, the bundles' own items are all there are."""
        self.snapshot = snapshot
        self._catalogues = catalogues or Catalogues(bundles, [])
        self.models = {version: Model(bundle, snapshot) for version, bundle in bundles.items()}

    def judge(self, seen: Observation) -> Verdict:
        """Whether the answer is what its version gives of one of the states that it may be of."""
        if seen.left_s is None:
            return Verdict("wrong", f"{seen.model_version} cannot have been active")
        if seen.left_s > FOLLOW_S:
            return Verdict("wrong", f"{seen.model_version} had been left for {seen.left_s:.1f} s")
        revision = seen.model_version, seen.items_revision
        left_s = self._catalogues.left_s(*revision, seen.asked_at, seen.answered_at)
        if left_s is None or left_s > FOLLOW_S:
            known = "cannot have been in use" if left_s is None else f"had been left for {left_s:.1f} s"
            return Verdict("wrong", f"the items {seen.items_revision} of {seen.model_version} {known}")
        return self._judge(seen, self.models[seen.model_version], self._catalogues.tables[revision])

    def _judge(self, seen: Observation, model: Model, items: ItemTable) -> Verdict:
        scores = np.array(seen.answer["scores"], np.float32)
        if seen.answer["tier"] == "prior":
            right = model.same(scores, items.prior[items.rows(seen.item_ids)])
            return Verdict("right") if right else Verdict("wrong", "these are not the items' click rates")
        unknown = np.flatnonzero(items.rows(seen.item_ids) == 0).tolist()
        if seen.answer["unknown_items"] != unknown:
            said = seen.answer["unknown_items"]
            return Verdict("wrong", f"the items at {unknown} are unknown, and said to be those at {said}")
        why = _impossible(seen)
        if why is not None:
            return Verdict("wrong", why)
        vectors = model.vectors(seen.item_ids, items)
        for cautious in (False, True):
            for least, late_s in _known(seen):
                for state in _states(model, seen, least, cautious=cautious):
                    if model.same(scores, model.score(state, vectors, seen.context)):
                        return Verdict(
                            "late" if late_s else "cautious" if cautious else "right", late_s=late_s
                        )
        return self._source(seen, scores)

    def _source(self, seen: Observation, scores: Scores) -> Verdict:
        """What gives these scores: parts of several versions, a state that it may not be of, or nothing known."""
        models, tables = self.models.values(), self._catalogues.tables.items()
        for scorer, ((version, revision), items), states in product(models, tables, models):
            if not scorer.fits(items, states):
                continue
            vectors = scorer.vectors(seen.item_ids, items)
            for place in reversed(range(seen.most + 1)):
                if scorer.same(scores, scorer.score(states.state(seen.acts, place), vectors, seen.context)):
                    used = f"scorer {scorer.version}, items {revision} of {version}, state {states.version} of step {place}"
                    named = {seen.model_version}
                    whole = {
                        scorer.version,
                        version,
                        states.version,
                    } == named and revision == seen.items_revision
                    return Verdict("wrong" if whole else "mixed", f"it comes of {used}; {_known_of(seen)}")
        return Verdict("wrong", f"nothing known gives these scores; {_known_of(seen)}")


def _impossible(seen: Observation) -> str | None:
    """Why the answer cannot be right, by what it says of the user's state; None where it can."""
    said, degraded = seen.answer["user_state"], set(seen.answer["degraded"])
    status, behind, age_ms = said["status"], said["events_behind"], said["age_ms"]
    wrong = {
        f"it is degraded by {sorted(degraded)}, though no state is damaged": not degraded <= NO_STATE,
        f"it is {behind} events behind, and degraded by {sorted(degraded)}": (behind is None)
        != bool(degraded),
        "the state is missing, and it does not say why": status == "missing" and not degraded,
        f"it is fresh, and {behind} events behind": status == "fresh" and behind != 0,
        f"it is {behind} events behind": (behind or 0) < 0,
        f"it is {status}, and {age_ms} ms old": (age_ms or 0) < 0
        or ((age_ms is None) != (status == "missing") and status != "cold"),
    }
    return next((why for why, is_so in wrong.items() if is_so), None)


def _known_of(seen: Observation) -> str:
    """For a person who wonders."""
    said, steps = seen.answer["user_state"], seen.acts.steps
    return (
        f"said to be {said['status']}, {said['events_behind']} events behind and {said['age_ms']} ms old; "
        f"{steps[seen.least].counted} events had been acknowledged at step {seen.least}, {steps[seen.most].counted} sent "
        f"at step {seen.most}, and the user forgotten by step {steps[seen.most].since}"
    )


def _known(seen: Observation) -> Iterator[tuple[int, float]]:
    """Which acknowledged step the service knew of, and by how many seconds what it knew was too old."""
    limit_s = AWAY_S if "redis_unavailable" in seen.answer["degraded"] else NOTICE_S
    yield seen.least, 0.0
    for place in reversed(range(seen.least)):
        late_s = seen.asked_at - seen.acts.acknowledged_at[place + 1]
        if late_s > limit_s:
            return
        yield place, late_s


def _states(model: Model, seen: Observation, least: int, *, cautious: bool) -> Iterator[UserState]:
    """The states that the answer may be of, by what it says of it, where the service knew of the step `least` at least."""
    status = seen.answer["user_state"]["status"]
    if status == "missing":
        yield model.bundle.cold_state
        return
    for place in _places(seen, least, cautious=cautious):
        state = model.state(seen.acts, place)
        if (state.events == 0) == (status == "cold") and _of_age(model, seen, place, least):
            yield state


def _places(seen: Observation, least: int, *, cautious: bool) -> Iterator[int]:
    """Steps of which the state may be, by how many events the answer says that it lacks."""
    steps, behind = seen.acts.steps, seen.answer["user_state"]["events_behind"]
    for place in reversed(range(steps[least].since, seen.most + 1)):
        # Without Redis it may be of any time before, but not of one that the user wants forgotten.
        if behind is None:
            yield place
            continue
        # Whoever encoded it may have counted one step less than there was in the history.
        since = steps[place].since
        counted = steps[max(since, place - cautious)].counted
        known = [
            step.counted - (counted if step.since == since else 0)
            for step in steps[max(place, least) : seen.most + 1]
        ]
        if behind in known:
            yield place
        elif behind < min(known) and since == steps[least].since:
            return


def _of_age(model: Model, seen: Observation, place: int, least: int) -> bool:
    """Whether a state of that step can be as old as the answer says."""
    age_ms = seen.answer["user_state"]["age_ms"]
    if age_ms is None:
        return True
    if place == seen.acts.steps[place].since > 0:
        # Who has been forgotten has no state, and so none of any age.
        return False
    oldest_s = seen.answered_at - model.encoded_after_s(seen.acts, place)
    # What it lacks had not been acknowledged when the history was read.
    lacks = place < least
    youngest_s = seen.asked_at - seen.acts.acknowledged_at[place + 1] - ENCODING_S if lacks else 0.0
    return bool(youngest_s <= age_ms / 1000 <= oldest_s + CLOCK_S)
