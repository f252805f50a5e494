"""The oracle of `make chaos`: it takes what an answer may be, and notices what it may not be."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest

from srp4ctr.contract.state import encode_state
from srp4ctr.runtime.event_store import History
from srp4ctr.runtime.history_encoder import HistoryEncoder
from srp4ctr_loadtest.chaos.acts import Acts
from srp4ctr_loadtest.chaos.catalogues import Catalogues
from srp4ctr_loadtest.chaos.oracle import Oracle, Snapshot
from srp4ctr_loadtest.chaos.traffic import Observation
from srp4ctr_loadtest.chaos.turns import FOLLOW_S, Absence, Turns

ASKED_AFTER_S, ACTED_AFTER_S, ACKNOWLEDGED_AFTER_S = 1000.0, 0.0, 90.0
"""Seconds, from when the states were published."""
AGE_MS = 906_000
"""Of a state that may have no event or some, but was encoded before the last was acknowledged, or as long after as encoding may take:
a second inside that limit, since times of the monotonic clock are rounded."""
CONTEXT = {"hour": 3, "device": "mobile"}


@pytest.fixture(scope="module")
def oracle(tiny, tiny_sequence, doings):
    """An oracle of two versions, and one user whom both know."""
    bundles = {run.bundle.manifest.version: run.bundle for run in (tiny, tiny_sequence)}
    states = {}
    for version, bundle in bundles.items():
        (one,) = HistoryEncoder(bundle).encode([History(doings.user, 0, 0, doings.before, {})])
        packed = encode_state(one.state, bundle.manifest.state, bundle.manifest.fingerprint_bytes)
        states[version] = {doings.user: packed}
    return Oracle(bundles, Snapshot({doings.user: doings.before}, states))


@pytest.fixture
def answered(tiny, tiny_sequence, doings, oracle):
    """Makes an answer by the first version: of which of three events, and what it says, and what is known."""
    item_ids = tiny.item_ids[:20]
    published_at = time.monotonic()
    acts = doings.acts(doings.user, published_at + ACTED_AFTER_S, published_at + ACKNOWLEDGED_AFTER_S)
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
        answer["unknown_items"] = []
        most = len(user.steps) - 1
        return Observation(user, item_ids, CONTEXT, asked_at, asked_at, least, most, 0.0, one, None, answer)

    return make


def test_the_oracle_takes_what_may_be(doings, oracle, answered):
    """Right are the states with all acknowledged events, those that say what they lack, and others where Redis is away."""
    away = {"behind": None, "degraded": ["redis_unavailable"]}
    stranger = Acts("stranger", doings.keep)
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
        (replace(right, items_revision="12345678"), "the items 12345678 of .* cannot have been in use"),
        (
            replace(right, answer=right.answer | {"unknown_items": [3]}),
            r"items at \[\] are unknown, .* at \[3\]",
        ),
        (replace(right, left_s=None), "cannot have been active"),
        (replace(right, left_s=FOLLOW_S + 1), "had been left for 6.0 s"),
    ):
        verdict = oracle.judge(wrong)
        assert verdict.outcome == "wrong", why
        assert re.search(why, verdict.reason), verdict


def test_the_oracle_notices_that_somebody_is_remembered(doings, oracle, answered):
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
    acts.record([doings.after[0]], at + 1)
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


def test_a_job_may_lose_redis_only_while_it_is_away():
    """Until it has loaded its data; at other times a job that says so has failed."""
    turns = Turns([Absence(5, 6), Absence(40)])
    assert [turns.redis_was_away(since, since + 1) for since in (1, 4.5, 10, 20, 39.5, 100)] == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]


def test_the_oracle_notices_other_items(tiny, oracle, answered):
    """An answer by another revision than it names is mixed, and by one that is not in use any more it is wrong."""
    right = answered(3, least=3)
    version, asked_at = right.model_version, right.asked_at
    table = replace(tiny.bundle.items, vectors=np.roll(tiny.bundle.items.vectors, 1, axis=0))
    catalogues = Catalogues({name: model.bundle for name, model in oracle.models.items()}, [])
    judge = Oracle({version: tiny.bundle}, oracle.snapshot, catalogues).judge
    catalogues.begin(version, "table", asked_at - 9)
    assert judge(right).outcome == "right"
    catalogues.complete(version, "table", asked_at - 8, "12345678", table)
    found = judge(right)
    assert (found.outcome, "had been left for 8.0 s" in found.reason) == ("wrong", True)
    found = judge(replace(right, items_revision="12345678"))
    assert (found.outcome, f"items None of {version}" in found.reason) == ("mixed", True)
