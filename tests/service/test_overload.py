"""More requests than the model can take: each is answered in time, from the prior or with a 503, and others go on."""

import asyncio
import json
import time

import ormsgpack
import pytest

from srp4ctr_service.door import PRIORS
from srp4ctr_service.model import ServedModel

RUN_S = 0.05
"""What one run of the slow model takes."""


@pytest.fixture
def slow(monkeypatch) -> None:
    """Every run of the model takes RUN_S."""
    compute = ServedModel.score

    def slowly(*arguments):
        time.sleep(RUN_S)
        return compute(*arguments)

    monkeypatch.setattr(ServedModel, "score", slowly)


class Connection:
    """A kept connection, without what a client library adds to the time."""

    @classmethod
    async def open(cls, client):
        """One that the service has taken up: it has answered over it once."""
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        assert (await self.ask("GET", "/livez"))[0] == 200
        return self

    async def ask(self, method, path, body=b"", *, more="", pieces=1):
        """Status, headers and body of the answer to a request that comes in so many pieces."""
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\n{more}content-length: {len(body)}\r\n\r\n"
        wire = head.encode() + body
        for piece in range(pieces):
            self.writer.write(wire[piece * len(wire) // pieces : (piece + 1) * len(wire) // pieces])
            await asyncio.sleep(0.001)
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        found = await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(found)

    async def close(self):
        self.writer.close()
        await self.writer.wait_closed()


def good(**changed) -> bytes:
    return json.dumps({"user_id": "1", "item_ids": ["1", "2", "3"]} | changed).encode()


def at_once(client, bodies):
    """The answers to requests that are sent at the same time."""

    async def scenario():
        # The service takes up one new connection between two runs, and all requests over those it has.
        opened = [await Connection.open(client) for _ in bodies]
        asked = (one.ask("POST", "/score", body) for one, body in zip(opened, bodies, strict=True))
        answers = await asyncio.gather(*asked)
        for one in opened:
            await one.close()
        return answers

    return asyncio.run(scenario())


@pytest.mark.usefixtures("slow")
def test_a_turn_that_would_come_too_late_gives_the_prior(first, api):
    """Of many at once those whose deadline allows it are scored in full, the others by the prior, which they say."""
    at_once(api, [good()])
    answers = at_once(api, [good(deadline_ms=4 * 1000 * RUN_S)] * 20)
    tiers = [answer["tier"] for status, _, answer in answers if status == 200]
    assert len(tiers) == 20
    assert 1 <= tiers.count("full") < 10
    rows = first.bundle.items.rows(["1", "2", "3"])
    for _, _, answer in answers:
        if answer["tier"] == "prior":
            assert answer["degraded"] in (["overload"], ["deadline"])
            assert answer["scores"] == pytest.approx(first.bundle.items.prior[rows], abs=1e-6)
        else:
            assert answer["degraded"] == []
    assert any(answer["degraded"] == ["overload"] for _, _, answer in answers)


@pytest.mark.usefixtures("slow")
def test_health_is_answered_between_two_runs(api):
    """While many requests wait for the model, a health check waits for one run of it and not for all."""

    async def scenario():
        opened = [await Connection.open(api) for _ in range(21)]
        scored = [asyncio.create_task(one.ask("POST", "/score", good())) for one in opened[:20]]
        await asyncio.sleep(3 * RUN_S)
        status, _, _ = await opened[20].ask("GET", "/livez")
        waiting = sum(not task.done() for task in scored)
        await asyncio.gather(*scored)
        for one in opened:
            await one.close()
        return status, waiting

    status, waiting = asyncio.run(scenario())
    assert status == 200
    assert waiting > 5


async def saturated(client, then, requests=25):
    """What `then` gives while so many requests wait for the model, and their answers."""
    opened = [await Connection.open(client) for _ in range(requests)]
    # The service learns what a run takes.
    await opened[0].ask("POST", "/score", good())
    waiting = [asyncio.create_task(one.ask("POST", "/score", good())) for one in opened]
    await asyncio.sleep(3 * RUN_S)
    found = await then
    answers = await asyncio.gather(*waiting)
    for one in opened:
        await one.close()
    return found, answers


HURRIED = {"deadline_ms": 2 * 1000 * RUN_S}
"""Lacks all that a request needs, which only its parsing tells; there is no time for it where several wait."""


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("body", "more", "pieces"),
    [
        (json.dumps(HURRIED).encode(), "", 1),
        (json.dumps(HURRIED).encode(), "", 2),
        (ormsgpack.packb(HURRIED), "content-type: application/msgpack\r\n", 1),
    ],
    ids=["JSON", "JSON in pieces", "MessagePack"],
)
def test_what_there_is_no_time_for_is_refused_unparsed(api, body, more, pieces):
    """Beyond a few, requests whose deadline others leave no time for get a 503 by their looks; health, and who can wait, go on."""
    number = int(PRIORS) + 20
    more += "X-Request-Id: Mine-1\r\n"

    async def then(opened):
        asked = (one.ask("POST", "/score", body, more=more, pieces=pieces) for one in opened[2:])
        return await asyncio.gather(
            opened[0].ask("GET", "/livez"), opened[1].ask("POST", "/score", good()), *asked
        )

    async def scenario():
        opened = [await Connection.open(api) for _ in range(number + 2)]
        found = await saturated(api, then(opened))
        # What was refused may be asked again over the same connection.
        again = await opened[-1].ask("POST", "/score", good())
        for one in opened:
            await one.close()
        return *found, again

    (alive, patient, *hurried), waiting, again = asyncio.run(scenario())
    assert alive[0] == again[0] == 200
    for status, _, answer in [patient, *waiting]:
        assert (status, answer["tier"]) == (200, "full")
    refused = [(headers, answer) for status, headers, answer in hurried if status == 503]
    assert {status for status, _, _ in hurried} <= {422, 503}
    assert len(refused) >= 15
    for headers, answer in refused:
        assert answer["type"] == "/problems/overloaded"
        assert answer["request_id"] == "Mine-1"
        assert headers["x-request-id"] == "mine-1"
        assert int(headers["retry-after"]) >= 1
    counted = f'srp4ctr_requests_total{{route="/score",status="503"}} {float(len(refused))}'
    assert counted in api.get("/metrics").text


def test_who_cannot_be_served_in_time_is_told_then(first, activate, settings, start, monkeypatch):
    """A request whose turn does not come in time is answered at its deadline, and not when its turn would have been."""
    activate(first)
    client = start(settings.model_copy(update={"deadline_grace_ms": 10_000}))
    compute = ServedModel.score

    def slowly(*arguments):
        time.sleep(RUN_S)
        return compute(*arguments)

    async def scenario():
        opened = [await Connection.open(client) for _ in range(31)]
        # Runs become slow when it is known that they are quick.
        await opened[0].ask("POST", "/score", good())
        monkeypatch.setattr(ServedModel, "score", slowly)
        waiting = [asyncio.create_task(one.ask("POST", "/score", good())) for one in opened[:30]]
        await asyncio.sleep(RUN_S)
        _, _, answer = await opened[30].ask("POST", "/score", good(deadline_ms=4 * 1000 * RUN_S))
        left = sum(not task.done() for task in waiting)
        await asyncio.gather(*waiting)
        for one in opened:
            await one.close()
        return answer, left

    answer, left = asyncio.run(scenario())
    assert answer["tier"] == "prior"
    assert left > 5


@pytest.mark.usefixtures("slow")
def test_too_many_candidates_are_refused_at_once(first, activate, settings, start, wait_until):
    """What is over the limit gets a 503 that says when to try again; what was taken up is answered in full."""
    activate(first)
    client = start(settings.model_copy(update={"max_waiting_candidates": 9}))
    answers = at_once(client, [good()] * 20)
    taken = [answer for status, _, answer in answers if status == 200]
    assert 3 <= len(taken) < 20
    assert {answer["tier"] for answer in taken} == {"full"}
    for status, headers, answer in answers:
        if status != 200:
            assert status == 503
            assert answer["type"] == "/problems/overloaded"
            assert int(headers["retry-after"]) >= 1
    # A single request is never too many, and the limit is free again.
    large = good(item_ids=[str(1 + place % 40) for place in range(100)])
    wait_until(lambda: at_once(client, [large])[0][0] == 200)


@pytest.mark.usefixtures("slow")
def test_an_answer_that_nobody_waits_for_is_not_computed(first, activate, settings, start):
    """When a deadline has long passed before anything could be done, the answer is a 504."""
    activate(first)
    client = start(settings.model_copy(update={"deadline_grace_ms": RUN_S * 1000}))
    at_once(client, [good()])
    answers = at_once(client, [*[good()] * 10, *[good(deadline_ms=1)] * 10])
    assert {status for status, _, _ in answers[:10]} == {200}
    for status, _, answer in answers[10:]:
        assert status in (200, 504)
        assert answer["tier"] == "prior" if status == 200 else answer["type"] == "/problems/deadline-missed"


def test_a_wrong_estimate_is_unlearned(api, monkeypatch):
    """After a few slow runs requests are scored in full again, although every one of them might have been refused."""
    compute = ServedModel.score
    with monkeypatch.context() as patch:

        def slowly(*arguments):
            time.sleep(1.0)
            return compute(*arguments)

        patch.setattr(ServedModel, "score", slowly)
        at_once(api, [good()])
    tiers = [at_once(api, [good(deadline_ms=200)])[0][2]["tier"] for _ in range(60)]
    assert tiers[0] == "prior"
    assert tiers[-1] == "full"


@pytest.mark.usefixtures("slow")
def test_items_given_by_attributes_count_as_what_they_cost(first, activate, settings, start):
    """Items whose attributes a request gives are counted among what waits before they are encoded."""
    activate(first)
    client = start(settings.model_copy(update={"max_waiting_candidates": 25}))
    items = [f"new-{place}" for place in range(5)]
    described = {item: {"genre": "Drama"} for item in items}

    async def then(opened):
        return await asyncio.gather(
            opened[0].ask("POST", "/score", good(item_ids=items, items=described)),
            opened[1].ask("POST", "/score", good(item_ids=items)),
        )

    async def scenario():
        opened = [await Connection.open(client) for _ in range(2)]
        found = await saturated(client, then(opened), requests=6)
        for one in opened:
            await one.close()
        return found

    (refused, taken), _ = asyncio.run(scenario())
    assert refused[0] == 503
    assert taken[0] == 200
    # Alone it is never too much.
    alone = client.post("/score", content=good(item_ids=items, items=described)).json()
    assert (alone["tier"], alone["unknown_items"]) == ("full", [])


@pytest.mark.usefixtures("slow")
def test_a_batch_is_scored_as_far_as_its_deadline_allows(first, activate, settings, start):
    """Of a batch that is too large for its deadline the first users are scored in full, the others by the prior."""
    activate(first)
    client = start(settings.model_copy(update={"deadline_grace_ms": 10_000}))
    at_once(client, [good()])
    # More than are given up until one is run to learn how long that takes.
    users = [{"user_id": str(user), "item_ids": ["1", "2"]} for user in range(60)]
    batch = {"requests": users, "deadline_ms": 8 * 1000 * RUN_S}
    answers = client.post("/score/batch", json=batch).json()["answers"]
    tiers = [answer["tier"] for answer in answers]
    full = tiers.count("full")
    assert tiers == ["full"] * full + ["prior"] * (60 - full)
    assert 1 <= full < 10
    assert [answer["degraded"] for answer in answers[full:]] == [["deadline"]] * (60 - full)


def test_a_batch_that_is_too_late_is_told_so(first, activate, settings, start):
    """A batch whose deadline and grace passed before there was any answer is a 504."""
    activate(first)
    client = start(settings.model_copy(update={"deadline_grace_ms": 0}))
    response = client.post("/score/batch", json={"requests": [json.loads(good())] * 3, "deadline_ms": 0.001})
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/deadline-missed"
