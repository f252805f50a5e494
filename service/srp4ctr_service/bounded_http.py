"""uvicorn's HTTP protocol, with limits on how large a request's head may be and how long the request may take to arrive, and with
a short way for requests that arrive in one piece, as those do whose client writes head and body at once.
"""

import asyncio
import math
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from srp4ctr_service.door import Door
from srp4ctr_service.problems import RETRY_AFTER_S, TOO_MANY_CONNECTIONS
from srp4ctr_service.quick_refusal import quick_refusal
from srp4ctr_service.request_scope import Answer, RequestScope
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.whole_request import WholeRequest, whole_request

MAX_HEAD_BYTES = 32 * 1024
"""Of a request's line and headers together: four times what proxies commonly pass on. The parser has no limit."""
MAX_PIPELINED = 1000
"""Requests of one connection that wait for the answer to one before them."""
SPARE_CONNECTIONS = 32
"""More than the most, for whoever asks how the process is: each is asked one thing, and closed."""
ABOUT_THE_PROCESS = frozenset({b"/livez", b"/readyz", b"/metrics"})
_LATE, _MALFORMED = "srp4ctr.late", "srp4ctr.malformed"


def is_late(scope: Scope) -> bool:
    """Whether the request's body has not arrived in time, so that there is nothing to wait for any more."""
    return _LATE in scope


def is_malformed(scope: Scope) -> bool:
    """Whether what came of the request's body is no HTTP, so that nothing more of it can be read."""
    return _MALFORMED in scope


class _EndedError(Exception):
    """Ends the parsing of a connection that is closed."""


class _Exchange:
    """What uvicorn's protocol asks of the request that it is answering, for one that it did not parse."""

    class _Unheard:
        def set(self) -> None:
            """Nobody waits for more of a request that is there as a whole."""

    message_event = _Unheard()

    def __init__(self) -> None:
        self.response_complete = self.disconnected = False
        self.keep_alive = True


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 to a head that is too long, 408 to one that does not end and 400 to what is no HTTP; tells the app of a body
    that does not end, and cuts off who goes on with one after the answer.

    A clock runs only for a request that was not there at once, so that the others, nearly all, cost nothing. A connection over
    which nothing is asked, or no answer read, ends.
    """

    def __init__(
        self,
        *parts: Any,
        arrival_s: float,
        max_unread: int,
        max_connections: int,
        spares: "set[BoundedHttp]",
        **named: Any,
    ) -> None:
        """As uvicorn makes them, for requests that must arrive within `arrival_s` seconds of their first byte, and answers that must
        be read within as many.

        Of a request that was answered before its end so many bytes more are taken, and dropped; of connections so many are open, and
        those of the process's that are more are among `spares`.
        """
        super().__init__(*parts, **named)
        app: Any = self.app
        self._scope: RequestScope = app
        self._door: Door = app.door
        self._telemetry: Telemetry = app.telemetry
        self._arrival_s = arrival_s
        self._max_unread = max_unread
        self._max_connections = max_connections
        self._spares = spares
        self._unread = self._piece = 0
        self._head_bytes = self._bodies = 0
        self._in_head = self._in_message = False
        self._quiet_since = -math.inf
        self._clock: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._running: Any = None
        """The request of those that the parser has read that is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) - len(self._spares) <= self._max_connections:
            self._quiet()
            return
        self._spares.add(self)
        if len(self._spares) > SPARE_CONNECTIONS:
            self._refuse_connection()
        else:
            self._quiet()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._between and self not in self._spares and self._taken(data):
            return
        self._piece, self._bodies = len(data), 0
        super().data_received(data)
        if self._in_head:
            self._count_head(data)
        elif self._in_message and self.cycle is not None and self.cycle.response_complete:
            self._unread += len(data)
            if self._unread > self._max_unread:
                self._close()
        if self._arriving:
            if self._clock is None:
                self._clock = self.loop.call_later(self._arrival_s, self._late)
        elif self._clock is not None:
            self._stop_clock()
        if self.timeout_keep_alive_task is None and self._between:
            # What came is no part of a request, and no reason to wait any longer.
            self._keep_alive_for(max(0.0, self._quiet_since + self.timeout_keep_alive - self.loop.time()))

    def _count_head(self, data: bytes) -> None:
        # Without what the piece has of requests before it: a head that has not ended has no empty line.
        ended = data.rfind(b"\r\n\r\n")
        self._head_bytes += min(len(data) - self._bodies, len(data) if ended < 0 else len(data) - ended - 4)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection."""
        self._stop_clock()
        self._stop_waiting_for_reader()
        self._nobody_is_there()
        self._spares.discard(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client has read."""
        if not self.transport.is_closing():
            self._stop_waiting_for_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """The end of an answer."""
        self._quiet_since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._in_head = self._in_message = True
        self._head_bytes = self._unread = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of its head."""
        # No longer than the pieces that it came in, so that few are measured.
        if self._head_bytes + self._piece > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refuse_head()
                raise _EndedError
        if self in self._spares and len(self.connections) - len(self._spares) < self._max_connections:
            self._spares.discard(self)
        if self in self._spares and self.url.partition(b"?")[0] not in ABOUT_THE_PROCESS:
            self._refuse_connection()
            raise _EndedError
        if len(self.pipeline) >= MAX_PIPELINED:
            # Its answers come in order, so that there is none to give to this request now.
            self._close()
            raise _EndedError
        # What is wrong with the head is found here, too.
        super().on_headers_complete()
        self._in_head = False
        if self in self._spares:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._bodies += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of the whole request."""
        self._in_message = False
        super().on_message_complete()

    @property
    def _between(self) -> bool:
        """Whether what comes next is a request of its own, and nothing is to be answered before it."""
        return (
            not self._in_message
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _taken(self, data: bytes) -> bool:
        """Whether that was all of a request which is as plain as most, and is being answered, or has been refused at the door."""
        request = whole_request(data, self._scope.whole_paths)
        if request is None:
            return False
        refusal = quick_refusal(request, self._door, self._telemetry) if self._scope.allows(request) else None
        if refusal is not None:
            self._send(refusal, keep_alive=True)
            self._quiet()
            return True
        self._door.arriving += 1
        self.cycle = exchange = _Exchange()  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(request, exchange))
        # Whoever stops the server waits for these.
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return True

    async def _answer(self, request: WholeRequest, exchange: _Exchange) -> None:
        try:
            answer = await self._scope.whole(request)
        except BaseException:
            # Whoever stops the server does not wait any longer.
            self._close()
            raise
        exchange.response_complete = True
        if self.transport.is_closing():
            return
        self._send(answer, keep_alive=exchange.keep_alive)
        if not exchange.keep_alive:
            self._close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._quiet()

    def _send(self, answer: Answer, *, keep_alive: bool) -> None:
        headers = (*self.server_state.default_headers, *answer.headers)
        lines = [b"%b: %b\r\n" % header for header in headers]
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((STATUS_LINE[answer.status], *lines, b"\r\n", answer.body)))

    def _quiet(self) -> None:
        """Nothing is under way: what follows is awaited for a while."""
        # A clock is not set anew for each, which would be a good part of what it costs.
        self._quiet_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """The end of the time that a connection may be idle, unless it was not."""
        if self.transport.is_closing():
            return
        left_s = self._quiet_since + self.timeout_keep_alive - self.loop.time()
        if not self._between:
            # It is looked at again when that has ended.
            left_s = self.timeout_keep_alive
        if left_s > 0:
            self._keep_alive_for(left_s)
        else:
            self._close()

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._door.arriving += 1
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _arriving(self) -> bool:
        return not self.transport.is_closing() and self._in_message

    def _close(self) -> None:
        """Close the connection when what was written has been read, or is not in time."""
        self.transport.close()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._arrival_s, self._abort)

    def _stop_waiting_for_reader(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _abort(self) -> None:
        self._nobody_is_there()
        self.transport.abort()

    def _nobody_is_there(self) -> None:
        # uvicorn tells the newest request alone, and whoever answers the others would write to what is closed.
        for cycle in (self.cycle, self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        if not self._arriving:
            return
        if self._in_head:
            self._refuse(b"408 Request Timeout", "request-timeout", 408)
        elif self.cycle.response_complete:
            self._close()
        else:
            self.scope[_LATE] = True  # type: ignore[literal-required]
            self.cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn says which
        """Answer what the parser does not take, unless its connection has ended already."""
        if self.transport.is_closing():
            return
        if self._in_message and not self._in_head:
            # It is the body of the newest request, which whoever reads that answers.
            self.scope[_MALFORMED] = True  # type: ignore[literal-required]
            self.cycle.message_event.set()
        self._refuse(b"400 Bad Request", "malformed-request", 400)

    def _refuse_connection(self) -> None:
        self._telemetry.count_problem(TOO_MANY_CONNECTIONS.name)
        more = b"retry-after: %d\r\n" % RETRY_AFTER_S
        self._refuse(b"503 Service Unavailable", TOO_MANY_CONNECTIONS.name, TOO_MANY_CONNECTIONS.status, more)

    def _refuse_head(self) -> None:
        self._refuse(b"431 Request Header Fields Too Large", "headers-too-large", 431)

    def _refuse(self, status: bytes, kind: str, number: int, more: bytes = b"") -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # What is being answered gets its own answer, and is the last.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        body = b'{"type":"/problems/%s","title":"%s","status":%d}' % (kind.encode(), status[4:], number)
        head = b"HTTP/1.1 %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n" % (
            status,
            len(body),
        )
        self.transport.write(head + more + b"connection: close\r\n\r\n" + body)
        self._close()
