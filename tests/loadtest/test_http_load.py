"""The loader asks as often and as it says, whatever the server does."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr_loadtest.http_load import Load, Request, closed_loop, offer, open_loop


@contextmanager
def server(answer, keep_alive_s=5):
    """A server whose POST requests are answered by `answer(body)`, a status and a body."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        status, body = await answer((await receive())["body"])
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        app, port=0, log_level="critical", lifespan="off", timeout_keep_alive=keep_alive_s
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        give_up_at = time.monotonic() + 20
        while not running.started:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/score"
    finally:
        running.should_exit = True
        thread.join()


def test_closed_loop_asks_each_in_turn() -> None:
    """So many requests as were wanted, going round, over no more connections than were wanted; every answer counts."""
    seen, at_once, most = [], 0, 0

    async def answer(body):
        nonlocal at_once, most
        seen.append(body)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        return (503 if body == b"2" else 200), b"x" * (100_000 if body == b"1" else 0)

    with server(answer) as url:
        requests = [Request.post(url, str(number).encode()) for number in range(3)]
        load = closed_loop(url, requests, connections=4, count=30)
    assert sorted(seen) == sorted([b"0", b"1", b"2"] * 10)
    assert load.statuses == {200: 20, 503: 10}
    assert len(load.latencies) == 30
    assert most == 4
    assert load.loop == "closed"


def test_open_loop_does_not_wait_for_a_server_that_stalls() -> None:
    """Requests keep their times while the server answers none, and their latencies begin at those times."""
    go_on = asyncio.Event()
    arrived = []

    async def answer(_):
        arrived.append(time.monotonic())
        if len(arrived) == 20:
            go_on.set()
        await go_on.wait()
        return 200, b"{}"

    with server(answer) as url:
        load = open_loop(url, [Request.post(url, b"x")], connections=30, rate=40, seconds=1.0)
    assert len(arrived) == len(load.latencies) > 20
    # The first was answered only when the twentieth had come.
    assert max(load.latencies) >= arrived[19] - arrived[0]
    assert load.loop == "open"


def test_a_closed_connection_is_an_error() -> None:
    """A server that ends a connection instead of answering ends the measurement, which would be of something else."""

    async def hang_up(reader, writer):
        await reader.read(10)
        writer.close()

    async def run():
        listening = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/score"
        with pytest.raises(ServiceNotReady, match="closed a connection"):
            await asyncio.to_thread(closed_loop, url, [Request.post(url, b"x")], connections=1, count=1)
        listening.close()

    asyncio.run(run())


def test_open_loop_opens_idle_connections_again() -> None:
    """A server that closes what is idle has done nothing wrong: most of many connections are idle at a low rate."""

    async def answer(_):
        return 200, b""

    with server(answer, keep_alive_s=1) as url:
        load = open_loop(url, [Request.post(url, b"")], connections=8, rate=2, seconds=6)
    assert set(load.statuses) == {200}
    assert sum(load.statuses.values()) == len(load.latencies) > 4


def test_who_gets_no_answer_is_counted() -> None:
    """A load that does not wait for ever ends, and says how many requests had no answer by then."""

    async def answer(body):
        await asyncio.sleep(2 if body == b"slow" else 0)
        return 200, b""

    with server(answer) as url:
        load = Load("open")
        requests = [Request.post(url, b"slow"), Request.post(url, b"quick")]
        asyncio.run(offer(load, url, requests, connections=20, rate=30, seconds=0.4, patience_s=0.4))
    assert load.unanswered > 0
    assert load.statuses == {200: len(load.latencies)}
    assert abs(load.unanswered - len(load.latencies)) <= 1
