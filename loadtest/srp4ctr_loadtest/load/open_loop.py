"""Requests at a constant rate, whether or not answers come, each answer checked: an open loop over connections that may break."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import uvloop

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr_loadtest.http_load import Connection, Request, connect
from srp4ctr_loadtest.load.alone import Alone
from srp4ctr_loadtest.load.answers import Answers
from srp4ctr_loadtest.load.checks import NO_ANSWER, Versions, WrongAnswer, status_problem
from srp4ctr_loadtest.load.routes import Asked
from srp4ctr_loadtest.load.workload import Question, new_run

DIFFERENT = 2000
"""Requests that are built before, and sent again and again."""


@dataclass(frozen=True)
class Pool:
    """Requests as they go over the wire to one address: what is before and behind the id that each request has of its own."""

    url: str
    asked: Sequence[Asked]
    run: str
    wire: Sequence[tuple[bytes, bytes]]
    versions: Versions
    alone: Alone
    timeout_s: float
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def of(
        cls,
        url: str,
        headers: Mapping[str, str],
        requests: Iterator[Asked],
        timeout_s: float,
        alone: Sequence[Question] = (),
    ) -> "Pool":
        """The next requests, as many as are worth building; the questions of `alone` are asked now."""
        taken = list(itertools.islice(requests, DIFFERENT))
        run = new_run()
        wire = []
        for one in taken:
            request = Request.post(f"{url}{one.route}", one.body, {**headers, "x-request-id": run})
            before, _, behind = request.wire.partition(run.encode())
            wire.append((before, behind))
        return cls(url, taken, run, wire, Versions(url, headers), Alone(url, headers, alone), timeout_s)

    def next_request(self, place: int) -> tuple[str, Request]:
        """A request of that place, under an id that no other request has."""
        before, behind = self.wire[place]
        request_id = f"open-{self.run}-{next(self.numbers)}"
        return request_id, Request(b"".join((before, request_id.encode(), behind)))


@dataclass(frozen=True)
class Sent:
    """One request, by its place in the pool and its id: when it was due and sent, seconds since the load began; how long its answer took
    from then on; and the answer, status 0 where there was none.
    """

    place: int
    request_id: str
    due: float
    sent: float
    took: float
    status: int
    body: bytes


@dataclass
class OpenLoop:
    """Answers, and how well the loader kept the times: what it used of a core, and how late it sent."""

    answers: Answers
    rate: float
    loader_cpu: float
    late_p99_ms: float


def open_loop(pool: Pool, *, connections: int, rate: float, seconds: float) -> OpenLoop:
    """Ask `rate` times a second at random times that are fixed before (a Poisson process), then check what was answered.

    A latency begins when its request was due, and so does the time after which one is given up. Where nobody listens, requests
    fail, each by one try to connect at most: connections are opened no more often than requests are due.
    """
    used = time.process_time()
    sent, took = uvloop.run(_ask(pool, connections, rate, seconds))
    used = time.process_time() - used
    answers = Answers("open", took)
    for one in sorted(sent, key=lambda one: one.due):
        answers.add(one.due, 1000 * one.took, pool.asked[one.place].route, _judge(pool, one, answers))
    late = [1000 * (one.sent - one.due) for one in sent]
    return OpenLoop(answers, rate, used / took, float(np.percentile(late, 99)) if late else 0.0)


def _judge(pool: Pool, one: Sent, answers: Answers) -> str:
    """What failed; counts how what did not fail was scored."""
    if one.status == 0:
        return f"{NO_ANSWER}{one.body.decode()}"
    if one.status != 200:
        return status_problem(one.status, one.body)
    try:
        for question, answer in pool.asked[one.place].check(one.request_id, one.body, pool.versions):
            answers.mix.count(answer, pool.alone.check(question, answer))
    except WrongAnswer as error:
        return str(error)
    return ""


async def _ask(pool: Pool, connections: int, rate: float, seconds: float) -> tuple[list[Sent], float]:
    loop = asyncio.get_running_loop()
    asker = _Asker(pool, await _opened(pool, connections))
    # A Poisson process of which it is known how many there are.
    times = np.sort(np.random.default_rng(0).uniform(0, seconds, max(1, round(rate * seconds))))
    asker.began = loop.time()
    asked = []
    for due, place in zip(times.tolist(), itertools.cycle(range(len(pool.wire))), strict=False):
        wait_s = asker.began + due - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        asked.append(asyncio.create_task(asker.ask(due, place)))
    await asyncio.gather(*asked)
    took = loop.time() - asker.began
    asker.close()
    return asker.sent, took


async def _opened(pool: Pool, connections: int) -> Sequence[Connection | None]:
    """So many connections, None for those that are still to be opened: all of them where nobody takes any in time."""
    try:
        async with asyncio.timeout(pool.timeout_s):
            return await connect(pool.url, connections)
    except OSError:
        return [None] * connections


class _Asker:
    """Connections that are taken in turns, each opened again when it has ended."""

    def __init__(self, pool: Pool, opened: Sequence[Connection | None]) -> None:
        self.sent: list[Sent] = []
        self.began = 0.0
        self._pool = pool
        # None: to be opened when its turn comes.
        self._free: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
        for connection in opened:
            self._free.put_nowait(connection)

    async def ask(self, due: float, place: int) -> None:
        """Ask when a connection is free, and note what came of it."""
        loop = asyncio.get_running_loop()
        connection = await self._free.get()
        sent = loop.time()
        status, body = 0, b""
        request_id, request = self._pool.next_request(place)
        left_s = self._pool.timeout_s - (sent - self.began - due)
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                if connection is None or not connection.usable:
                    [connection] = await connect(self._pool.url, 1)
                status, body = await connection.ask(request)
        except TimeoutError:
            body = b"timeout"
        except OSError:
            body = b"no connection"
        except ServiceNotReady:
            body = b"connection closed"
        if status == 0 and left_s > 0 and connection is not None:
            connection.close()
            connection = None
        self._free.put_nowait(connection)
        took = loop.time() - self.began - due
        self.sent.append(Sent(place, request_id, due, sent - self.began, took, status, body))

    def close(self) -> None:
        """End all connections."""
        while not self._free.empty():
            connection = self._free.get_nowait()
            if connection is not None:
                connection.close()
