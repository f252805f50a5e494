"""Bad input gets a 4xx that names the field, and never a 500."""

import json
import socket
import time

import orjson
import ormsgpack
import psutil
import pytest

from srp4ctr_service.settings import Settings

MAX_BODY_BYTES = Settings.model_fields["max_body_bytes"].default
GOOD = {"user_id": "1", "item_ids": ["1", "2"]}


def good(**changed):
    return json.dumps(GOOD | changed).encode()


NOT_JSON = {
    "empty": b"",
    "cut off": good()[:-1],
    "trailing text": good() + b"x",
    "not utf-8": b'{"user_id": "\xff", "item_ids": ["1"]}',
    "utf-16": json.dumps(GOOD).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + good(),
    "lone surrogate in the user": b'{"user_id": "\\ud800", "item_ids": ["1"]}',
    "lone surrogate in an item": b'{"user_id": "1", "item_ids": ["\\udc00"]}',
    "lone surrogate in a context": b'{"user_id": "1", "item_ids": ["1"], "context": {"weekday": "\\ud800"}}',
    "single quotes": b"{'user_id': '1', 'item_ids': ['1']}",
    "endless nesting": b"[" * 100_000,
    "integer without end": b'{"user_id": "1", "item_ids": ["1"], "context": {"hour": '
    + b"9" * 10_000
    + b"}}",
    "form": b"user_id=1&item_ids=1",
}

WRONG = {
    "array": (b"[]", "body"),
    "null": (b"null", "body"),
    "string": (b'"1"', "body"),
    "number": (b"1e3", "body"),
    "no user": (b'{"item_ids": ["1"]}', "user_id"),
    "no items": (b'{"user_id": "1"}', "item_ids"),
    "user null": (good(user_id=None), "user_id"),
    "user number": (good(user_id=1), "user_id"),
    "user empty": (good(user_id=""), "user_id"),
    "user too long": (good(user_id="x" * 257), "user_id"),
    "user with NUL": (good(user_id="a\0b"), "user_id"),
    "items a string": (good(item_ids="1"), "item_ids"),
    "items an object": (good(item_ids={"0": "1"}), "item_ids"),
    "items empty": (good(item_ids=[]), "item_ids"),
    "item number": (good(item_ids=["1", "2", "3", 4]), "item_ids[3]"),
    "item null": (good(item_ids=["1", None]), "item_ids[1]"),
    "item list": (good(item_ids=[["1"]]), "item_ids[0]"),
    "item empty": (good(item_ids=["1", ""]), "item_ids[1]"),
    "item with NUL": (good(item_ids=["1", "\0"]), "item_ids[1]"),
    "item too long": (good(item_ids=["x" * 257]), "item_ids[0]"),
    "more items than the service takes": (good(item_ids=["1"] * 2001), "item_ids"),
    "more items than the interface takes": (good(item_ids=["1"] * 10_001), "item_ids"),
    "unknown field": (good(items=["1"]), "items"),
    "unknown field, huge": (good(**{"x" * 10_000: 1}), "x" * 100 + "..."),
    "context a list": (good(context=[]), "context"),
    "context null": (good(context=None), "context"),
    "context unknown": (good(context={"foo": 1}), "context.foo"),
    "context held when serving": (good(context={"position": 1}), "context.position"),
    "context held when serving, at its reference": (good(context={"position": 2}), "context.position"),
    "context nested": (good(context={"hour": {"of": "day"}}), "context.hour"),
    "context list": (good(context={"weekday": ["Mo"]}), "context.weekday"),
    "context text for a number": (good(context={"hour": "13"}), "context.hour"),
    "context boolean for a number": (good(context={"hour": True}), "context.hour"),
    "context NaN": (good(context={"hour": float("nan")}), "context.hour"),
    "context infinity": (good(context={"hour": float("inf")}), "context.hour"),
    "context integer beyond floats": (good(context={"hour": 10**400}), "context.hour"),
    "context fraction for a category": (good(context={"weekday": 1.5}), "context.weekday"),
    "context with NUL": (good(context={"weekday": "a\0"}), "context.weekday"),
    "deadline text": (good(deadline_ms="20"), "deadline_ms"),
    "deadline zero": (good(deadline_ms=0), "deadline_ms"),
    "deadline negative": (good(deadline_ms=-1), "deadline_ms"),
    "deadline too long": (good(deadline_ms=1e9), "deadline_ms"),
    "deadline NaN": (good(deadline_ms=float("nan")), "deadline_ms"),
    "deadline boolean": (good(deadline_ms=True), "deadline_ms"),
}


def check_problem(response, kind, status):
    """The answer is problem+json of that type, with the request's id."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"/problems/{kind}"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_body_that_is_not_json(shared_api, body):
    """A body that is not JSON in UTF-8 is a 400 that names the body."""
    problem = check_problem(shared_api.post("/score", content=body), "malformed-body", 400)
    assert [error["field"] for error in problem["errors"]] == ["body"]


@pytest.mark.parametrize(("body", "field"), WRONG.values(), ids=WRONG)
def test_body_that_does_not_fit(shared_api, body, field):
    """A body that is not a request of the interface is a 422 that names the field."""
    problem = check_problem(shared_api.post("/score", content=body), "invalid-request", 422)
    assert field in [error["field"] for error in problem["errors"]]


def test_service_is_well_after_all_of_them(shared_api):
    """After every kind of bad body a good one is answered, and no error was unforeseen."""
    for body in [*NOT_JSON.values(), *(body for body, _ in WRONG.values())]:
        shared_api.post("/score", content=body)
    assert shared_api.post("/score", content=good()).status_code == 200
    assert 'type="internal"' not in shared_api.get("/metrics").text


def test_all_wrong_fields_are_named_at_once(shared_api):
    """A request with several faults hears of all of them, up to a limit."""
    body = {"user_id": 1, "item_ids": ["1", 2], "context": {"hour": []}, "more": 1}
    problem = check_problem(shared_api.post("/score", json=body), "invalid-request", 422)
    fields = {error["field"] for error in problem["errors"]}
    assert fields == {"user_id", "item_ids[1]", "context.hour", "more"}
    many = check_problem(
        shared_api.post("/score", json=GOOD | {"context": {f"f{number}": [] for number in range(200)}}),
        "invalid-request",
        422,
    )
    assert len(many["errors"]) == 20


_MANY = 150_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"item_ids": [1] * _MANY}, "item_ids[0]"),
        ({"candidate_features": {"hour": [{}] * _MANY}}, "candidate_features.hour[0]"),
        ({"candidate_features": {str(number): [{}] for number in range(_MANY // 2)}}, "body"),
        ({"context": {str(number): {} for number in range(_MANY // 2)}}, "body"),
        ({"items": {"1": {str(number): {} for number in range(_MANY // 2)}}}, "body"),
        ({"items": {"1": {"genre": [{}] * _MANY}}}, "items.1.genre"),
        ({str(number): 0 for number in range(_MANY // 2)}, "body"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_a_body_of_many_faults_is_no_work(api, body, field, binary):
    """A body of the largest size that is wrong in all its parts is refused, and takes neither the memory nor the time of others."""
    process = psutil.Process()
    before = process.memory_info().rss
    pack, media = (ormsgpack.packb, "msgpack") if binary else (orjson.dumps, "json")
    content = pack(GOOD | body)
    assert len(content) < MAX_BODY_BYTES
    headers = {"content-type": f"application/{media}"}
    problem = check_problem(api.post("/score", content=content, headers=headers), "invalid-request", 422)
    assert problem["errors"][0]["field"] == field
    # One error for each type that each value is not took a hundred times the body.
    assert process.memory_info().rss - before < 100 * 1_000_000


def test_announced_body_too_large(shared_api):
    """A body that announces more bytes than allowed is refused as too large."""
    response = shared_api.post("/score", content=b" " * (MAX_BODY_BYTES + 1))
    problem = check_problem(response, "body-too-large", 413)
    assert problem["errors"][0]["field"] == "body"


def test_streamed_body_too_large(shared_api):
    """A body that does not announce its size is refused once it has grown too large."""
    chunk = b" " * 65_536
    response = shared_api.post("/score", content=(chunk for _ in range(MAX_BODY_BYTES // len(chunk) + 1)))
    problem = check_problem(response, "body-too-large", 413)
    assert problem["errors"][0]["field"] == "body"


def test_body_that_never_arrives(start, settings):
    """A client that announces a body and sends half of it gets an answer within the limit for bodies."""
    client = start(settings.model_copy(update={"arrival_timeout_ms": 50}))
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = raw.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in answer
    assert b"x-request-id" in answer


def test_head_that_never_ends(start, settings):
    """A client that stops in the middle of its headers is told so within the same limit, and cut off."""
    client = start(settings.model_copy(update={"arrival_timeout_ms": 50}))
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-le")
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in answer


def test_slow_but_whole_request_is_served(first, activate, start, settings):
    """A request that comes in pieces is served if it is whole in time, and so is the next on its connection."""
    activate(first)
    client = start(settings.model_copy(update={"arrival_timeout_ms": 400}))
    body = good()
    head = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as raw:
        for _ in range(2):
            for piece in (head[:10], head[10:], body[:5], body[5:]):
                raw.sendall(piece)
                time.sleep(0.02)
            assert raw.recv(65_536).startswith(b"HTTP/1.1 200 ")
        # Nothing is on its way now, however long that lasts.
        time.sleep(0.5)
        raw.sendall(head + body)
        assert raw.recv(65_536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("piece", [b"a: b\r\n" * 1000, b"x" * 6000], ids=["many headers", "one long header"])
def test_head_without_end(shared_api, piece):
    """A client whose headers never end is cut off, however it fills them, and the next one is served."""
    with socket.create_connection((shared_api.base_url.host, shared_api.base_url.port), timeout=30) as raw:
        raw.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nlong: ")
        with pytest.raises(ConnectionError):
            _send_on(raw, piece)
    assert shared_api.post("/score", content=good()).status_code == 200


def _send_on(raw, piece):
    for _ in range(1000):
        raw.sendall(piece)
        time.sleep(0.001)


def test_long_head_is_told(shared_api):
    """A head that is too long is answered with what is wrong, where the client listens."""
    with socket.create_connection((shared_api.base_url.host, shared_api.base_url.port), timeout=30) as raw:
        raw.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nlong: ")
        raw.sendall(b"x" * 33_000)
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"/problems/headers-too-large" in answer


def test_long_head_in_one_piece(shared_api):
    """A head is as long as it is, however few pieces it comes in."""
    with socket.create_connection((shared_api.base_url.host, shared_api.base_url.port), timeout=30) as raw:
        raw.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 8000 + b"\r\n")
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"/problems/headers-too-large" in answer


def test_what_is_no_http(shared_api):
    """Bytes that are no request get a problem, and the end of the connection."""
    with socket.create_connection((shared_api.base_url.host, shared_api.base_url.port), timeout=30) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer
    assert b"/problems/malformed-request" in answer


@pytest.mark.parametrize("goes_on", [True, False])
def test_client_that_does_not_end_after_its_answer(start, settings, goes_on):
    """A client that was refused and goes on sending, or stops in the middle, is cut off."""
    client = start(settings.model_copy(update={"max_body_bytes": 1000, "arrival_timeout_ms": 2000}))
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n{")
        assert raw.recv(65_536).startswith(b"HTTP/1.1 413 ")
        if goes_on:
            with pytest.raises(ConnectionError):
                _send_on(raw, b"x" * 6000)
        else:
            assert raw.recv(65_536) == b""


def test_requests_that_do_not_wait_for_answers(shared_api):
    """A hundred requests in a row are answered in a row; who sends thousands without end is cut off."""
    where = (shared_api.base_url.host, shared_api.base_url.port)
    one = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(where, timeout=30) as raw:
        raw.sendall(100 * one + last)
        answers = raw.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 ") == 100
    assert answers.index(b"HTTP/1.1 404 ") > answers.rindex(b"HTTP/1.1 200 ")
    with socket.create_connection(where, timeout=30) as raw, pytest.raises(ConnectionError):
        _send_on(raw, 5000 * one)
    assert shared_api.post("/score", content=good()).status_code == 200


def test_client_that_leaves_early_does_no_harm(shared_api):
    """A client that hangs up in the middle of its body is forgotten, and the next one is served."""
    with socket.create_connection((shared_api.base_url.host, shared_api.base_url.port), timeout=30) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert shared_api.post("/score", content=good()).status_code == 200


def test_unknown_path(shared_api):
    """A path that is not there is a 404 problem."""
    check_problem(shared_api.get("/scores"), "not-found", 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_method(shared_api, method):
    """A method that a path does not take is a 405 problem that says which it takes."""
    response = shared_api.request(method, "/score")
    check_problem(response, "method-not-allowed", 405)
    assert response.headers["allow"] == "POST"
