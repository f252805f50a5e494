"""Load over HTTP/1.1, at little cost of its own: closed loop and open loop, and which is which is said in every result.

Closed loop: connections that each ask again as soon as they are answered. It finds what a server can do, and says little of
latency, because a slow server is asked less. Open loop: requests at times that were fixed before, each waited for from its
own time on, however late it could be sent, so that a stall counts for all who would have come meanwhile.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

from srp4ctr.contract.errors import ServiceNotReady

IDLE_S = 2.0
"""A connection that has been idle for longer is not asked over again: servers close theirs after five seconds or so."""


@dataclass(frozen=True)
class Request:
    """One POST request, as it goes over the wire."""

    wire: bytes

    @classmethod
    def post(cls, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> "Request":
        """A POST to the URL, of JSON where the headers do not say otherwise."""
        parts = urlsplit(url)
        lines = {
            "host": parts.netloc,
            "content-type": "application/json",
            **(headers or {}),
            "content-length": str(len(body)),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return cls(f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body)


@dataclass
class Load:
    """What came of a load: latencies in seconds, in the order of the answers, and how many had which status."""

    loop: Literal["closed", "open"]
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    last_body: bytes = b""
    unanswered: int = 0
    sent_late: list[float] = field(default_factory=list)
    """Of an open loop: seconds from when a request was due until there was a connection and time to send it."""

    def note(self, latency: float, status: int, body: bytes) -> None:
        """Count an answer that took so many seconds."""
        self.latencies.append(latency)
        self.statuses[status] += 1
        self.last_body = body

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def milliseconds(self, *percentiles: float) -> list[float]:
        """Percentiles of the latencies, in milliseconds."""
        found: NDArray[np.float64] = np.percentile(1000 * np.array(self.latencies), percentiles)
        return [float(one) for one in found]


class Connection(asyncio.Protocol):
    """One connection with one request under way at a time; ServiceNotReady where the server closes it."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None
        self._kept = True

    @property
    def usable(self) -> bool:
        """Whether another request may be asked: the server has neither closed it nor said that it will."""
        return self._kept and self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not derived from what asyncio calls a Transport.
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: Request) -> asyncio.Future[tuple[int, bytes]]:
        """Status and body of the answer, in the future."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request.wire)
        return self._answer

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        status = self._parser.get_status_code()
        self._kept = self._parser.should_keep_alive()
        # A parser is good for one answer where the server does not say that it keeps the connection.
        self._parser = httptools.HttpResponseParser(self)
        assert self._answer is not None
        # Whoever asked may have given up a moment before.
        if not self._answer.done():
            self._answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ServiceNotReady(f"the server closed a connection: {exc}"))


def closed_loop(url: str, requests: Sequence[Request], *, connections: int, count: int) -> Load:
    """Ask `count` times over so many connections, going through the requests again and again."""
    return uvloop.run(_closed(url, requests, connections, count))


def open_loop(
    url: str, requests: Sequence[Request], *, connections: int, rate: float, seconds: float
) -> Load:
    """Ask `rate` times a second, at random times (a Poisson process), whether or not answers come."""
    load = Load("open")
    uvloop.run(offer(load, url, requests, connections=connections, rate=rate, seconds=seconds))
    return load


async def connect(url: str, connections: int) -> list[Connection]:
    """So many open connections to the URL's server, each of which the caller closes; OSError where it does not take all."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    opened: list[Connection] = []
    try:
        for _ in range(connections):
            _, protocol = await loop.create_connection(
                Connection, parts.hostname or "localhost", parts.port or 80
            )
            opened.append(protocol)
    except BaseException:
        for connection in opened:
            connection.close()
        raise
    return opened


async def _closed(url: str, requests: Sequence[Request], connections: int, count: int) -> Load:
    loop = asyncio.get_running_loop()
    load = Load("closed")
    # One iterator for all connections: which takes which request does not matter.
    left: Iterator[Request] = itertools.islice(itertools.cycle(requests), count)

    async def keep_asking(connection: Connection) -> None:
        for request in left:
            began = loop.time()
            status, body = await connection.ask(request)
            load.note(loop.time() - began, status, body)

    opened = await connect(url, connections)
    began = loop.time()
    await asyncio.gather(*map(keep_asking, opened))
    load.seconds = loop.time() - began
    for connection in opened:
        connection.close()
    return load


async def offer(
    load: Load,
    url: str,
    requests: Sequence[Request],
    *,
    connections: int,
    rate: float,
    seconds: float,
    patience_s: float | None = None,
) -> None:
    """Have `load` note the answers of an open loop; what has none so long after the last request was due counts as unanswered."""
    loop = asyncio.get_running_loop()
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    opened = await connect(url, connections)
    for connection in opened:
        free.put_nowait(connection)
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds * 1.2) + 10)
    times = np.cumsum(gaps)
    times = times[times < seconds]
    began = loop.time()

    used = dict.fromkeys(opened, began)

    async def ask(due: float, request: Request) -> None:
        connection = await free.get()
        if not connection.usable or loop.time() - used.pop(connection) > IDLE_S:
            connection.close()
            [connection] = await connect(url, 1)
        load.sent_late.append(loop.time() - due)
        try:
            status, body = await connection.ask(request)
        except asyncio.CancelledError:
            connection.close()
            raise
        load.note(loop.time() - due, status, body)
        used[connection] = loop.time()
        free.put_nowait(connection)

    asked = []
    for due, request in zip((began + times).tolist(), itertools.cycle(requests), strict=False):
        wait_s = due - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        asked.append(asyncio.create_task(ask(due, request)))
    try:
        load.unanswered = await _ended(asked, patience_s)
    finally:
        load.seconds = loop.time() - began
        for connection in used:
            connection.close()


async def _ended(asked: Sequence[asyncio.Task[None]], patience_s: float | None) -> int:
    """Wait so long at most; how many had not ended then, and were cancelled. Raises what the first raised that failed."""
    if not asked:
        return 0
    ended, late = await asyncio.wait(asked, timeout=patience_s, return_when=asyncio.FIRST_EXCEPTION)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in ended:
        task.result()
    return len(late)
