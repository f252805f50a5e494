"""POST /score: what is scored, and what is said about it."""

import numpy as np
import pytest

from srp4ctr.contract.keys import Keys

ITEMS = ["3", "1", "40", "2"]


def test_fresh_state_is_used(first, store, score):
    """A published user's state decides the scores, which are aligned with item_ids."""
    store.put_many("first", [("1", first.state(tokens=0.5))])
    answer = score(item_ids=ITEMS).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS, tokens=0.5), abs=1e-6)
    assert answer["model_version"] == "first"
    assert answer["tier"] == "full"
    assert answer["degraded"] == answer["unknown_items"] == []
    assert answer["user_state"]["status"] == "fresh"
    assert answer["user_state"]["age_ms"] >= 0
    assert answer["user_state"]["events_behind"] == 0


def test_unknown_user_is_cold(first, score):
    """A user without a state is scored by the cold state, and flagged."""
    answer = score(user_id="nobody", item_ids=ITEMS).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS), abs=1e-6)
    assert answer["user_state"] == {"status": "cold", "age_ms": None, "events_behind": 0}
    assert answer["degraded"] == []


def test_empty_history_is_cold(first, store, score):
    """A user whose state has no events is scored by that state, and called cold."""
    store.put_many("first", [("1", first.state(tokens=0.25, events=0))])
    answer = score(item_ids=ITEMS).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS, tokens=0.25), abs=1e-6)
    assert answer["user_state"]["status"] == "cold"


def test_old_state_is_stale(first, store, score):
    """A state older than the limit is used, and called stale."""
    store.put_many("first", [("1", first.state(created_at_ms=1_000_000_000_000))])
    answer = score(item_ids=ITEMS).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS, tokens=0.5), abs=1e-6)
    assert answer["user_state"]["status"] == "stale"
    assert answer["user_state"]["age_ms"] > 86_400_000


def test_unknown_items_are_scored_and_flagged(first, score):
    """Items that the catalogue lacks are scored as the unknown item, and their places are named."""
    items = ["1", "nothing", "2", "x" * 256, "\U0001f37f" * 256]
    answer = score(user_id="nobody", item_ids=items).json()
    assert answer["unknown_items"] == [1, 3, 4]
    assert answer["scores"] == pytest.approx(first.scores(items), abs=1e-6)


def test_context_is_used(first, score):
    """Context features change the scores as the bundle's transforms say."""
    context = {"weekday": "Mo", "hour": 13}
    answer = score(user_id="nobody", item_ids=ITEMS, context=context).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS, context=context), abs=1e-6)
    assert answer["scores"] != pytest.approx(first.scores(ITEMS), abs=1e-6)


def test_a_held_feature_is_scored_at_its_reference(first, score):
    """A request without the position, or with a null in its place, is scored at the reference; one with it is told so."""
    weekday, hour, reference = 1, 1, 3
    items = first.bundle.items.codes[first.bundle.items.rows(ITEMS)].sum(axis=1)
    expected = 1 / (1 + np.exp(-(first.bias + 0.01 * (items + weekday + hour + reference))))
    for context in ({}, {"position": None}):
        answer = score(user_id="nobody", item_ids=ITEMS, context=context)
        assert answer.json()["scores"] == pytest.approx(expected, abs=1e-6)
    refused = score(user_id="nobody", item_ids=ITEMS, context={"position": 1})
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert error["field"] == "context.position"
    assert error["message"] == "is held at its reference, 2, when serving; leave it out"


def test_candidate_does_not_see_its_neighbours(score):
    """A candidate's score is the same bits alone, among others and in any order, repeated or not."""
    items = [str(number) for number in range(1, 41)] * 5
    together = dict(zip(items, score(item_ids=items).json()["scores"], strict=True))
    assert score(item_ids=items[::-1]).json()["scores"] == [together[item] for item in items[::-1]]
    assert [score(item_ids=[item]).json()["scores"][0] for item in ITEMS] == [
        together[item] for item in ITEMS
    ]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1], lambda data: data[:60] + b"\xff" + data[61:], lambda _: b""]
)
def test_corrupt_state_is_missing(first, store, score, spoil):
    """State bytes that are not whole are not scored with; the answer says so."""
    store.put_many("first", [("1", spoil(first.state()))])
    answer = score(item_ids=ITEMS).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS), abs=1e-6)
    assert answer["user_state"] == {"status": "missing", "age_ms": None, "events_behind": None}
    assert answer["degraded"] == ["state_corrupt"]


def test_foreign_state_is_missing(first, second, store, score):
    """A state that another model wrote is not scored with; the answer says so."""
    store.put_many("first", [("1", second.state())])
    answer = score(item_ids=ITEMS).json()
    assert answer["scores"] == pytest.approx(first.scores(ITEMS), abs=1e-6)
    assert answer["user_state"]["status"] == "missing"
    assert answer["degraded"] == ["state_foreign"]


def test_wrong_type_in_redis_is_survived(first, store, redis_server, settings, score):
    """A key of another type in a state's place degrades that user's answers, and nobody else's."""
    store.put_many("first", [("2", first.state())])
    with redis_server.client() as client:
        client.lpush(Keys(settings.namespace).state("first", "1"), "x")
    for _ in range(5):
        answer = score(item_ids=ITEMS).json()
        assert answer["scores"] == pytest.approx(first.scores(ITEMS), abs=1e-6)
        assert answer["user_state"]["status"] == "missing"
        assert answer["degraded"] == ["state_corrupt"]
        assert score(user_id="2").json()["user_state"]["status"] == "fresh"


def test_deadline_that_cannot_be_met_gives_the_prior(first, store, score):
    """Without time for the model, each candidate's own click rate is the answer, which says so."""
    store.put_many("first", [("1", first.state())])
    items = [*ITEMS, "nothing"]
    answer = score(item_ids=items, deadline_ms=0.0001).json()
    rows = first.bundle.items.rows(items)
    assert answer["scores"] == pytest.approx(first.bundle.items.prior[rows], abs=1e-6)
    assert answer["tier"] == "prior"
    assert answer["degraded"] == ["deadline"]
    assert answer["unknown_items"] == [4]
    assert answer["user_state"]["age_ms"] is None


def test_every_allowed_size_is_scored(first, settings, score):
    """From one candidate to the most that the settings allow, every one gets a score."""
    for count in (1, 2, 999, settings.max_candidates):
        items = [str(1 + place % 40) for place in range(count)]
        answer = score(user_id="nobody", item_ids=items).json()
        assert answer["scores"] == pytest.approx(first.scores(items), abs=1e-6)
