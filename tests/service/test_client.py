"""The Python client against the running service, and against servers that fail in ways a service does not at will."""

import asyncio
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from srp4ctr.client import (
    AsyncClient,
    Client,
    Event,
    Impression,
    ServiceProblem,
    ServiceUnreachable,
    UserRequest,
)
from srp4ctr.client.calls import Json, batch_call
from srp4ctr.contract.errors import ConfigError, InvalidRequest
from srp4ctr.contract.http_types import Problem

ITEMS = ["3", "1", "40", "2"]
KEY = "a-key-that-nobody-guesses"


@pytest.fixture
def url(api) -> str:
    """Where a service is that scores by `first`."""
    return str(api.base_url)


@pytest.mark.parametrize("binary", [False, True])
def test_client_gives_what_the_service_answers(first, store, url, binary):
    """All methods give typed answers of what they are asked, in JSON and in MessagePack."""
    store.put_many("first", [("1", first.state())])
    with Client(url, binary=binary) as client:
        scored = client.score("1", ITEMS, context={"hour": 13}, deadline_ms=900)
        assert scored.scores == pytest.approx(first.scores(ITEMS, 0.5, {"hour": 13}), abs=1e-6)
        assert (scored.user_state.status, scored.tier, scored.model_version) == ("fresh", "full", "first")
        ranked = client.rank("1", ITEMS, top_k=2, candidate_features={"hour": [1, 2, 3, 4]})
        assert len(ranked.item_ids) == 2
        new = client.score("1", ["new"], items={"new": {"genre": "Drama"}})
        assert new.unknown_items == []
        asked = [
            UserRequest(user_id="1", item_ids=ITEMS, context={"hour": 13}),
            UserRequest(user_id="2", item_ids=["7"]),
        ]
        batch = client.batch(asked)
        assert batch.answers[0].scores == scored.scores
        assert batch.answers[1].user_state.status == "cold"
        assert client.model().version == "first"
        event = Event(user_id="a/b c", item_id="7", event_id="e-1", timestamp_ms=1_700_000_000_000)
        sent = client.events([event, event])
        assert (sent.stored, sent.duplicates, sent.too_old) == (1, [1], [])
        assert client.score("a/b c", ITEMS).user_state.events_behind == 1
        shown = Impression(request_id="r", user_id="a/b c", item_ids=["7"], timestamp_ms=1_700_000_000_000)
        assert client.impressions([shown]).monitored == 0
        assert client.forget("a/b c").removed == 3
        assert client.score("a/b c", ITEMS).user_state.events_behind == 0


@pytest.mark.parametrize("binary", [False, True])
def test_async_client_is_the_same(first, url, binary):
    """The asynchronous client gives the same answers, many at a time."""

    async def scenario():
        async with AsyncClient(url, binary=binary) as client:
            many = await asyncio.gather(*(client.score("nobody", ITEMS) for _ in range(30)))
            ranked = await client.rank("nobody", ITEMS)
            batch = await client.batch([UserRequest(user_id="nobody", item_ids=ITEMS)])
            event = Event(user_id="7", item_id="7", event_id="e-1", timestamp_ms=1_700_000_000_000)
            assert (await client.events([event])).stored == 1
            shown = Impression(request_id="r", user_id="7", item_ids=["7"], timestamp_ms=1_700_000_000_000)
            assert (await client.impressions([shown])).monitored == 0
            assert (await client.forget("7")).removed == 3
            return many, ranked, batch, await client.model()

    many, ranked, batch, model = asyncio.run(scenario())
    for one in (*many, batch.answers[0]):
        assert one.scores == pytest.approx(first.scores(ITEMS), abs=1e-6)
    assert sorted(ranked.item_ids) == sorted(ITEMS)
    assert model.version == "first"


@pytest.mark.parametrize("binary", [False, True])
def test_wrong_requests_are_refused_with_their_field(url, binary):
    """What never fits is refused before it is sent; what does not fit the model, by the service."""
    with Client(url, binary=binary) as client:
        for arguments, fields, wrong in (
            (("1", []), {}, "item_ids"),
            (("", ["1"]), {}, "user_id"),
            (("1", ["1"]), {"deadline_ms": -1}, "deadline_ms"),
            # Longer than the client waits.
            (("1", ["1"]), {"deadline_ms": 3001}, "deadline_ms"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                client.score(*arguments, **fields)
            assert refused.value.field == wrong
        with pytest.raises(ServiceProblem, match=r"422 .* context\.foo: unknown feature") as answered:
            client.score("1", ["1"], context={"foo": 1})
        assert answered.value.problem.status == 422
        assert answered.value.problem.request_id


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_never_sent(number, binary):
    """NaN and infinity are refused by their field before anything is sent, and are no null, wherever a request may have them."""
    # Nobody listens there: a request that was sent would be another error.
    with Client("http://127.0.0.1:9", binary=binary) as client:
        for fields, wrong in (
            ({"context": {"hour": number}}, "context.hour"),
            ({"user_features": {"age": number}}, "user_features.age"),
            ({"candidate_features": {"hour": [1.5, number]}}, "candidate_features.hour[1]"),
            ({"items": {"3": {"price": number}}}, "items.3.price"),
            ({"items": {"3": {"tags": ["a", number]}}}, "items.3.tags"),
            ({"deadline_ms": number}, "deadline_ms"),
        ):
            for ask in (client.score, client.rank):
                with pytest.raises(InvalidRequest, match="a finite number") as refused:
                    ask("1", ["3", "1"], **fields)
                assert refused.value.field == wrong
        # As they were made these were right.
        one, event = UserRequest(user_id="1", item_ids=["3"], context={}), make_event()
        one.context["hour"] = event.features["rating"] = number
        with pytest.raises(InvalidRequest) as refused:
            client.batch([UserRequest(user_id="2", item_ids=["3"]), one])
        assert refused.value.field == "requests[1].context.hour"
        with pytest.raises(InvalidRequest) as refused:
            client.events([event])
        assert refused.value.field == "events[0].features.rating"
    with pytest.raises(ValidationError, match="finite number"):
        UserRequest(user_id="1", item_ids=["3"], context={"hour": number})


def make_event() -> Event:
    """One that fits."""
    return Event(user_id="7", item_id="7", event_id="e", timestamp_ms=1, features={})


def test_parts_of_requests_say_what_was_set_alone():
    """Users of a batch are sent as they were made, without the fields that nobody gave."""
    call = batch_call([UserRequest(user_id="1", item_ids=["3"])], None)
    assert call.content(Json())["content"] == b'{"requests":[{"user_id":"1","item_ids":["3"]}]}'


def test_nobody_there_is_unreachable():
    """Without a service there is an error that says where nobody answered."""
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9"):
        client.score("1", ["1"])


@contextmanager
def answering(*outcomes):
    """A server that meets requests by these outcomes, one after the other: a status, with Retry-After or not, or None to hang up."""
    left = list(outcomes)
    problem = Problem(type="/problems/x", title="A problem", status=0, detail="d", request_id="r")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            outcome, after = left.pop(0), None
            if isinstance(outcome, tuple):
                outcome, after = outcome
            if outcome is None:
                self.close_connection = True
                return
            text = (
                "nonsense"
                if outcome == 200
                else problem.model_copy(update={"status": outcome}).model_dump_json()
            )
            self.send_response(outcome)
            self.send_header("content-length", str(len(text)))
            if after is not None:
                self.send_header("retry-after", after)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", left
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("outcomes", "error", "unused"),
    [
        ([503, 422, 422], "422", 1),
        ([(503, "0"), 422, 422], "422", 1),
        ([(503, "9"), 422, 422], "503", 2),
        ([None, 422, 422], "422", 1),
        ([503, 503, 422], "503", 1),
        ([None, None, 422], "disconnected", 1),
        ([422, 422, 422], "422", 2),
        ([500, 422, 422], "500", 2),
        ([200, 422, 422], "not as this service does", 2),
    ],
)
def test_what_may_be_repeated_is_sent_once_more(outcomes, error, unused):
    """No answer and an overloaded service are tried once more if there is time for it, and nothing else is."""
    with answering(*outcomes) as (url, left):
        with Client(url) as client, pytest.raises((ServiceProblem, ServiceUnreachable), match=error):
            client.model()
        assert len(left) == unused

    async def scenario(url):
        async with AsyncClient(url) as client:
            await client.model()

    with answering(*outcomes) as (url, left):
        with pytest.raises((ServiceProblem, ServiceUnreachable), match=error):
            asyncio.run(scenario(url))
        assert len(left) == unused


@pytest.fixture
def guarded(first, activate, settings, start, tmp_path):
    """A service that asks for a key."""
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\nanother-key-for-a-rotation\n")
    activate(first)
    return start(settings.model_copy(update={"api_keys_file": file}))


def test_api_keys(guarded):
    """With keys every path but health asks for one of them, and says how; every key of the file will do."""
    for path in ("/model", "/metrics", "/docs", "/nothing"):
        refused = guarded.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["type"] == "/problems/not-authorized"
    for path in ("/livez", "/readyz"):
        assert guarded.get(path).status_code == 200
    url = str(guarded.base_url)
    for key in (KEY, "another-key-for-a-rotation"):
        with Client(url, api_key=key) as client:
            assert client.score("1", ITEMS).model_version == "first"
    for key in (None, "wrong", KEY[:-1], KEY + "x"):
        with Client(url, api_key=key) as client, pytest.raises(ServiceProblem, match="401"):
            client.score("1", ITEMS)


@pytest.mark.parametrize("content", ["", "\n", "short\n", None])
def test_useless_key_files_are_refused(settings, start, tmp_path, content):
    """A service does not start with a file that nobody, or anybody, could use."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="SRP4CTR_API_KEYS_FILE"):
        start(settings.model_copy(update={"api_keys_file": file}))
