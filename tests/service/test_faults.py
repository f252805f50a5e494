"""Redis gone, hanging or empty: scoring goes on, says so, and recovers by itself."""

import asyncio
import json

import pytest

from srp4ctr.runtime.state_reads import TIMEOUTS_UNTIL_LOST
from srp4ctr_service.scoring import Scoring

GOOD = {"user_id": "1", "item_ids": ["1", "2", "3"]}


def test_killed_redis_degrades_and_recovers(first, store, redis_server, score, wait_until):
    """After kill -9 of Redis every answer is a 200 that says degraded: users whose state is known are scored by it, and
    others as cold ones; after its restart states are used again.
    """
    store.put_many("first", [("1", first.state()), ("2", first.state())])
    assert score().json()["user_state"]["status"] == "fresh"
    redis_server.kill()
    for user, status, tokens in [("1", "stale", 0.5), ("2", "missing", 0.0)] * 10:
        response = score(user_id=user)
        assert response.status_code == 200
        answer = response.json()
        assert answer["degraded"] == ["redis_unavailable"]
        assert answer["user_state"]["status"] == status
        assert answer["scores"] == pytest.approx(first.scores(GOOD["item_ids"], tokens=tokens), abs=1e-6)
    redis_server.start()
    wait_until(lambda: score().json()["degraded"] == [])
    assert score().json()["scores"] == pytest.approx(first.scores(GOOD["item_ids"], tokens=0.5), abs=1e-6)


def test_hanging_redis_degrades_and_recovers(first, activate, settings, start, redis_server, wait_until):
    """A Redis that accepts and never answers costs a request no more than the limit for states."""
    activate(first)
    client = start(settings.model_copy(update={"redis_score_timeout_ms": 50}))
    redis_server.pause()
    for _ in range(10):
        assert client.post("/score", json=GOOD).json()["degraded"] == ["redis_unavailable"]
    redis_server.resume()
    wait_until(lambda: client.post("/score", json=GOOD).json()["degraded"] == [])


@pytest.fixture
def never_probing(first, store, activate, settings, start):
    """A client of a service that, once Redis is lost, would try it again only after an hour."""
    store.put_many("first", [("1", first.state())])
    activate(first)
    changed = {"redis_score_timeout_ms": 500, "redis_probe_every_ms": 3_600_000}
    return start(settings.model_copy(update=changed))


def test_lost_redis_is_not_waited_for_by_everyone(redis_server, never_probing):
    """After some late answers in a row Redis is lost: until the next probe nobody tries it, even if it is back."""
    redis_server.pause()
    for _ in range(TIMEOUTS_UNTIL_LOST):
        assert never_probing.post("/score", json=GOOD).json()["degraded"] == ["redis_unavailable"]
    redis_server.resume()
    for _ in range(5):
        assert never_probing.post("/score", json=GOOD).json()["degraded"] == ["redis_unavailable"]


def test_one_late_answer_is_no_outage(redis_server, never_probing):
    """A read that times out degrades its own answer, and the next request tries Redis all the same."""
    redis_server.pause()
    assert never_probing.post("/score", json=GOOD).json()["degraded"] == ["redis_unavailable"]
    redis_server.resume()
    assert never_probing.post("/score", json=GOOD).json()["user_state"]["status"] == "fresh"


def test_a_read_leaves_time_for_the_model(first, store, activate, settings, start, redis_server):
    """Where a request's own time is shorter than the limit for Redis, it is scored in full without the state, and says why."""
    store.put_many("first", [("1", first.state())])
    activate(first)
    client = start(settings.model_copy(update={"redis_score_timeout_ms": 20_000}))
    assert client.post("/score", json=GOOD).json()["degraded"] == []
    redis_server.pause()
    try:
        unknown = client.post("/score", json=GOOD | {"user_id": "2", "deadline_ms": 1000}).json()
    finally:
        redis_server.resume()
    assert (unknown["tier"], unknown["degraded"]) == ("full", ["deadline"])
    assert unknown["user_state"]["status"] == "missing"
    assert unknown["scores"] == pytest.approx(first.scores(GOOD["item_ids"]), abs=1e-6)


@pytest.mark.parametrize("state", ["good", "damaged"])
def test_what_was_last_known_is_scored_where_a_deadline_ends_the_read(
    state, first, store, activate, settings, start, redis_server, wait_until
):
    """What is doubted, since its connection has ended, is still better than nothing, unless it cannot be read."""
    store.put_many("first", [("1", first.state() if state == "good" else b"nothing")])
    activate(first)
    client = start(settings.model_copy(update={"redis_score_timeout_ms": 20_000}))
    before = client.post("/score", json=GOOD).json()
    assert before["degraded"] == ([] if state == "good" else ["state_corrupt"])
    # The service's connection for states ends, and is made again without what it had kept being read again.
    redis_server.client().client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: client.post("/score", json=GOOD | {"user_id": "2"}).json()["degraded"] == [])
    redis_server.pause()
    try:
        answer = client.post("/score", json=GOOD | {"deadline_ms": 1000}).json()
    finally:
        redis_server.resume()
    assert (answer["tier"], answer["degraded"]) == ("full", ["deadline"])
    assert answer["user_state"]["status"] == ("stale" if state == "good" else "missing")
    tokens = 0.5 if state == "good" else 0.0
    assert answer["scores"] == pytest.approx(first.scores(GOOD["item_ids"], tokens=tokens), abs=1e-6)


def test_refused_connection_is_an_outage(redis_server, never_probing):
    """A Redis that is gone is lost at once."""
    redis_server.kill()
    assert never_probing.post("/score", json=GOOD).json()["degraded"] == ["redis_unavailable"]
    redis_server.start()
    assert never_probing.post("/score", json=GOOD).json()["degraded"] == ["redis_unavailable"]


def score_at_once(client, count):
    """The answers to that many requests at the same time, each with plenty of time."""

    # httpx takes many times as long for it as the service does.
    body = json.dumps(GOOD | {"deadline_ms": 60_000}).encode()
    head = f"POST /score HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"

    async def post():
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 200 ")
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    async def scenario():
        return await asyncio.gather(*(post() for _ in range(count)))

    return asyncio.run(scenario())


def test_burst_does_not_lose_a_healthy_redis(first, store, settings, activate, start):
    """However busy the service itself is, a Redis that is well is not called unavailable."""
    store.put_many("first", [("1", first.state())])
    activate(first)
    client = start(settings.model_copy(update={"redis_score_timeout_ms": 100}))
    for _ in range(3):
        answers = score_at_once(client, 400)
        assert {answer["user_state"]["status"] for answer in answers} == {"fresh"}
        assert {answer["tier"] for answer in answers} == {"full"}


@pytest.mark.parametrize("fail", ["kill", "pause"])
def test_burst_on_a_lost_redis(first, store, api, redis_server, wait_until, fail):
    """When Redis is lost under a burst, every answer is the model's, in time, and says so; then it recovers."""
    store.put_many("first", [("1", first.state())])
    getattr(redis_server, fail)()
    for answer in score_at_once(api, 200):
        assert answer["degraded"] == ["redis_unavailable"]
        assert answer["tier"] == "full"
    {"kill": redis_server.start, "pause": redis_server.resume}[fail]()
    wait_until(lambda: api.post("/score", json=GOOD).json()["user_state"]["status"] == "fresh")


def test_short_deadline_does_not_declare_redis_lost(first, store, score):
    """A request whose own deadline passes while Redis is read says nothing about Redis to the next request."""
    store.put_many("first", [("1", first.state())])
    for _ in range(20):
        hasty = score(deadline_ms=0.3).json()
        assert "redis_unavailable" not in hasty["degraded"]
        assert score().json()["user_state"]["status"] == "fresh"


def test_start_without_redis_waits_for_it(first, activate, start, redis_server, wait_until):
    """A service that starts while Redis is away refuses with 503 and Retry-After, and begins to serve by itself."""
    activate(first)
    redis_server.kill()
    client = start()
    response = client.post("/score", json=GOOD)
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/no-active-model"
    assert int(response.headers["retry-after"]) >= 1
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["dependencies"]["redis"]["status"] == "degraded"
    assert ready.json()["dependencies"]["model"]["status"] == "missing"
    redis_server.start()
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/score", json=GOOD).status_code == 200


def test_redis_down_is_still_ready(api, redis_server):
    """With a model loaded, a lost Redis is reported by name, and the service stays ready."""
    redis_server.kill()
    ready = api.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["dependencies"]["redis"]["status"] == "degraded"
    assert ready.json()["dependencies"]["model"] == {"status": "ok", "detail": "first"}


def test_nothing_active_yet(start, first, activate, wait_until):
    """Before the first activation the service says what to do, and serves soon after it."""
    client = start()
    response = client.post("/score", json=GOOD)
    assert response.status_code == 503
    assert "srp4ctr activate" in response.json()["detail"]
    assert client.get("/model").status_code == 503
    assert client.get("/livez").status_code == 200
    activate(first)
    wait_until(lambda: client.post("/score", json=GOOD).status_code == 200)


def test_emptied_redis_keeps_the_model(api, redis_server):
    """When Redis has lost all it held, the model in place goes on, and users are cold."""
    with redis_server.client() as client:
        client.flushall()
    answer = api.post("/score", json=GOOD).json()
    assert answer["user_state"]["status"] == "cold"
    assert answer["model_version"] == "first"


def test_error_that_nobody_foresaw(api, monkeypatch):
    """A bug of our own is a 500 problem that tells nothing of its inside, and is counted; the service lives on."""

    async def fail(*_):
        raise ZeroDivisionError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "score", fail)
        response = api.post("/score", json=GOOD)
    assert response.status_code == 500
    assert response.json()["type"] == "/problems/internal"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert 'srp4ctr_problems_total{type="internal"} 1.0' in api.get("/metrics").text
    assert api.post("/score", json=GOOD).status_code == 200
