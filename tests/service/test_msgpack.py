"""Bodies in MessagePack: the same fields, the same checks, the same answers."""

import json
import math

import ormsgpack
import pytest

GOOD = {"user_id": "1", "item_ids": ["1", "40", "new", "2"]}
TYPE = {"content-type": "application/msgpack"}


def post(api, path, body):
    content = body if isinstance(body, bytes) else ormsgpack.packb(body)
    return api.post(path, content=content, headers=TYPE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", GOOD | {"context": {"weekday": "Mo", "hour": 13.5}}),
        ("/score", GOOD | {"candidate_features": {"hour": [1, 2.5, None, 4]}}),
        ("/score", GOOD | {"items": {"new": {"genre": "Drama"}}}),
        ("/rank", GOOD | {"top_k": 3}),
        ("/score/batch", {"requests": [GOOD, GOOD | {"user_id": "2"}], "deadline_ms": 5000}),
    ],
)
def test_answers_are_those_of_json(shared_api, path, body):
    """An answer has the fields and values that the same request gets in JSON."""
    binary = post(shared_api, path, body)
    assert binary.status_code == 200
    assert binary.headers["content-type"] == "application/msgpack"
    answer, other = ormsgpack.unpackb(binary.content), shared_api.post(path, json=body).json()
    for one in (answer, other):
        one.pop("request_id")
    assert _rounded(answer) == _rounded(other)


def _rounded(value):
    """With numbers to the digits that a float32 has."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 7) if isinstance(value, float) else value


@pytest.mark.parametrize("body", [b"", b"\xc1", ormsgpack.packb(GOOD)[:-1], b"\x91" * 5000])
def test_body_that_is_no_msgpack(shared_api, body):
    """What is no whole MessagePack value is a 400 problem, in JSON like every problem."""
    response = post(shared_api, "/score", body)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/malformed-body"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([GOOD], "body"),
        (GOOD | {"user_id": b"1"}, "user_id"),
        (GOOD | {"user_id": 1}, "user_id"),
        (GOOD | {"item_ids": ["1", b"2"]}, "item_ids[1]"),
        (GOOD | {"item_ids": []}, "item_ids"),
        (GOOD | {"item_ids": ["1", "a\0b"]}, "item_ids[1]"),
        (GOOD | {"deadline_ms": math.nan}, "deadline_ms"),
        (GOOD | {"deadline_ms": math.inf}, "deadline_ms"),
        (GOOD | {"context": {"hour": math.nan}}, "context.hour"),
        (GOOD | {"context": {"hour": math.inf}}, "context.hour"),
        (GOOD | {"context": {"weekday": b"Mo"}}, "context.weekday"),
        (GOOD | {"more": 1}, "more"),
    ],
)
def test_body_that_does_not_fit(shared_api, body, field):
    """What JSON cannot even say is refused like what does not fit, by the field's name."""
    response = post(shared_api, "/score", body)
    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]


def test_other_content_types_are_json(shared_api):
    """curl calls what it posts a form; a body that is JSON is taken for what it is."""
    body = json.dumps(GOOD).encode()
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        response = shared_api.post("/score", content=body, headers={"content-type": kind})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
