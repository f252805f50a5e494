"""What a request may say besides the user and the candidates, and the other ways to ask: /rank and /score/batch."""

import numpy as np
import pytest

ITEMS = ["3", "1", "40", "2"]


@pytest.fixture
def post(api):
    """POST to a path; gives the answer of a 200, and else the errors' fields and messages."""

    def post(path, **body):
        response = api.post(path, json=body)
        if response.status_code == 200:
            return response.json()
        assert response.status_code == 422, response.text
        return {error["field"]: error["message"] for error in response.json()["errors"]}

    return post


def test_rank_gives_the_best_first(first, store, post):
    """/rank is /score, sorted: the same scores by candidate, and only the best `top_k` where that is given."""
    store.put_many("first", [("1", first.state())])
    items = [str(number) for number in range(1, 41)]
    scored = post("/score", user_id="1", item_ids=items)
    ranked = post("/rank", user_id="1", item_ids=items)
    by_item = dict(zip(items, scored["scores"], strict=True))
    assert sorted(ranked["item_ids"]) == sorted(items)
    assert (
        ranked["scores"] == [by_item[item] for item in ranked["item_ids"]] == sorted(by_item.values())[::-1]
    )
    for name in ("model_version", "user_state", "tier", "degraded"):
        if name != "user_state":
            assert ranked[name] == scored[name]
    assert ranked["user_state"]["status"] == "fresh"
    best = post("/rank", user_id="1", item_ids=items, top_k=3)
    assert best["item_ids"] == ranked["item_ids"][:3]
    assert best["scores"] == ranked["scores"][:3]
    assert post("/rank", user_id="1", item_ids=items, top_k=500)["item_ids"] == ranked["item_ids"]


def test_equal_candidates_keep_their_order(post):
    """Candidates of the same score are ranked in the order of the request, unknown ones and repeated ones too."""
    ranked = post("/rank", user_id="1", item_ids=["x", "7", "y", "7", "z"])
    assert ranked["item_ids"] == ["7", "7", "x", "y", "z"]
    assert ranked["unknown_items"] == [0, 2, 4]


@pytest.mark.parametrize("top_k", [0, -1, 10_001, 1.5, "3", True])
def test_top_k_must_be_a_number_of_candidates(post, top_k):
    """What is no number of candidates is refused by name."""
    assert list(post("/rank", user_id="1", item_ids=ITEMS, top_k=top_k)) == ["top_k"]


def test_batch_scores_each_user_as_alone(first, store, post):
    """Several users in one request have the scores and the states that they have one by one, and one model version."""
    store.put_many("first", [("1", first.state(tokens=0.5)), ("2", first.state(tokens=-0.5))])
    requests = [
        {"user_id": "1", "item_ids": ITEMS},
        {"user_id": "2", "item_ids": ["7", "nothing"], "context": {"hour": 13}},
        {"user_id": "nobody", "item_ids": ["8"]},
        {"user_id": "1", "item_ids": ITEMS},
    ]
    answer = post("/score/batch", requests=requests)
    assert answer["model_version"] == "first"
    for one, request in zip(answer["answers"], requests, strict=True):
        alone = post("/score", **request)
        assert one["scores"] == alone["scores"]
        assert one["user_state"]["status"] == alone["user_state"]["status"]
        assert one["unknown_items"] == alone["unknown_items"]
        assert (one["tier"], one["degraded"]) == ("full", [])
    assert answer["answers"][1]["scores"] == pytest.approx(
        first.scores(["7", "nothing"], tokens=-0.5, context={"hour": 13}), abs=1e-6
    )


def test_batch_names_the_request_at_fault(post):
    """An error in one of several requests says in which one it is."""
    good = {"user_id": "1", "item_ids": ["1"]}
    for bad, field in (
        ({"user_id": "1", "item_ids": []}, "requests[1].item_ids"),
        ({"user_id": "1", "item_ids": ["1", "a\0"]}, "requests[1].item_ids[1]"),
        ({"user_id": "1"}, "requests[1].item_ids"),
        ({**good, "context": {"foo": 1}}, "requests[1].context.foo"),
        ({**good, "context": {"hour": []}}, "requests[1].context.hour"),
        ({**good, "candidate_features": {"hour": []}}, "requests[1].candidate_features.hour"),
        ({**good, "deadline_ms": 5}, "requests[1].deadline_ms"),
    ):
        assert list(post("/score/batch", requests=[good, bad])) == [field]
    assert list(post("/score/batch", requests=[])) == ["requests"]
    assert list(post("/score/batch", requests=[good] * 257)) == ["requests"]


def test_batch_has_a_limit_of_its_own(first, activate, settings, start):
    """All candidates of a batch together are limited, and the error says to how many."""
    activate(first)
    client = start(settings.model_copy(update={"max_batch_candidates": 5}))
    request = {"user_id": "1", "item_ids": ["1", "2", "3"]}
    response = client.post("/score/batch", json={"requests": [request, request]})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "requests", "message": "6 candidates are more than the 5 allowed"}
    ]
    assert client.get("/model").json()["limits"]["max_batch_candidates"] == 5


def test_a_feature_of_each_candidate(first, post):
    """Context features may differ between candidates: each is scored as if its value were the request's."""
    weekdays, hours = ["Mo", "Tu", None, "Su"], [3, None, 13, 23.5]
    answer = post(
        "/score",
        user_id="nobody",
        item_ids=ITEMS,
        candidate_features={"weekday": weekdays, "hour": hours},
    )
    contexts = [{"weekday": day, "hour": hour} for day, hour in zip(weekdays, hours, strict=True)]
    assert answer["scores"] == pytest.approx(first.scores(ITEMS, context=contexts), abs=1e-6)
    mixed = post(
        "/score",
        user_id="nobody",
        item_ids=ITEMS,
        context={"weekday": "Mo"},
        candidate_features={"hour": hours},
    )
    contexts = [{"weekday": "Mo", "hour": hour} for hour in hours]
    assert mixed["scores"] == pytest.approx(first.scores(ITEMS, context=contexts), abs=1e-6)


@pytest.mark.parametrize(
    ("said", "field", "message"),
    [
        ({"candidate_features": {"hour": [1, 2]}}, "candidate_features.hour", "has 2 values for 4 item_ids"),
        (
            {"candidate_features": {"hour": [1] * 4}, "context": {"hour": 2}},
            "candidate_features.hour",
            "is in context, too; give it once",
        ),
        (
            {"candidate_features": {"foo": [1] * 4}},
            "candidate_features.foo",
            "unknown feature; known are hour, weekday",
        ),
        (
            {"candidate_features": {"position": [1, 2, 3, 4]}},
            "candidate_features.position",
            "is held at its reference, 2, when serving; leave it out",
        ),
        (
            {"candidate_features": {"hour": [1, "2", 3, 4]}},
            "candidate_features.hour[1]",
            "must be a number, not a string",
        ),
        (
            {"candidate_features": {"hour": [1, {}, 3, 4]}},
            "candidate_features.hour[1]",
            "must be a string, a finite number, a boolean or null",
        ),
        ({"items": {"new": {"genre": "Drama"}}}, "items.new", "is not among the item_ids"),
        ({"items": {"1": {"colour": "red"}}}, "items.1.colour", "unknown feature; known are genre, id"),
        ({"items": {"1": {"id": "2"}}}, "items.1.id", "the item's id is its name here; leave it out"),
        (
            {"items": {"1": {"genre": 1.5}}},
            "items.1.genre",
            "must be a string, an integer or a boolean, not a fraction",
        ),
        ({"user_features": {"age": 3}}, "user_features.age", "unknown feature; the model takes none"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(post, said, field, message):
    """An error names the value at fault, and says what would be right."""
    assert post("/score", user_id="1", item_ids=ITEMS, **said) == {field: message}


def test_new_items_are_scored_from_their_attributes(first, post):
    """An item that the catalogue lacks is scored as an unknown id with the attributes that the request gives."""
    items = ["new", "1", "other", "nothing"]
    answer = post(
        "/score",
        user_id="nobody",
        item_ids=items,
        items={"new": {"genre": "Drama"}, "other": {"genre": "Western"}, "1": {"genre": "Drama"}},
    )
    comedy, drama = 2, 3
    known = first.bundle.items.codes[first.bundle.items.rows(["1"])][0]
    assert known.tolist() == [
        first.bundle.transforms.vocabularies["item.id"].encode(np.array([b"1"]))[0],
        comedy,
    ]
    codes = np.array([[1, drama], [known[0], drama], [1, 1], [1, 1]])
    assert answer["scores"] == pytest.approx(first.scores(items, codes=codes), abs=1e-6)
    assert answer["unknown_items"] == [3]
    plain = post("/score", user_id="nobody", item_ids=items)
    assert plain["unknown_items"] == [0, 2, 3]


def test_items_given_by_attributes_are_limited(first, activate, settings, start):
    """A user's question gives the attributes of so many items at most, alone or in a batch, and the error says of how many."""
    activate(first)
    client = start(settings.model_copy(update={"max_inline_items": 1}))
    one = {"user_id": "1", "item_ids": ["a", "b"], "items": {"a": {"genre": "Drama"}}}
    both = one | {"items": {"a": {}, "b": {}}}
    assert client.post("/score/batch", json={"requests": [one, one]}).status_code == 200
    message = "2 items are more than the 1 allowed"
    for path, body, field in (
        ("/score", both, "items"),
        ("/rank", both, "items"),
        ("/score/batch", {"requests": [one, both]}, "requests[1].items"),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 422
        assert response.json()["errors"] == [{"field": field, "message": message}]
    assert client.get("/model").json()["limits"]["max_inline_items"] == 1
