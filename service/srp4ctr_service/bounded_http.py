"""uvicorn's HTTP protocol, with limits on how large a request's head may be and how long the request may take to arrive, and with
a short way for requests that arrive in one piece, as nearly all do.
"""

import asyncio
import math
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from srp4ctr_service.door import Door
from srp4ctr_service.quick_refusal import quick_refusal
from srp4ctr_service.request_scope import RequestScope
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.whole_request import WholeRequest, whole_request

MAX_HEAD_BYTES = 32 * 1024
"""Of a request's line and headers together: four times what proxies commonly pass on. The parser has no limit."""
MAX_PIPELINED = 1000
"""Requests of one connection that wait for the answer to one before them."""
_LATE = "srp4ctr.late"


def is_late(scope: Scope) -> bool:
    """Whether the request's body has not arrived in time, so that there is nothing to wait for any more."""
    return _LATE in scope


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

    A clock runs only for a request that was not there at once, so that the others, nearly all, cost nothing.
    """

    def __init__(self, *parts: Any, arrival_s: float, max_unread: int, **named: Any) -> None:
        """As uvicorn makes them, for requests that must arrive within `arrival_s` seconds of their first byte.

        Of a request that was answered before its end so many bytes more are taken, and dropped.
        """
        super().__init__(*parts, **named)
        app: Any = self.app
        self._scope: RequestScope = app
        self._door: Door = app.door
        self._telemetry: Telemetry = app.telemetry
        self._arrival_s = arrival_s
        self._max_unread = max_unread
        self._unread = self._piece = 0
        self._head_bytes = 0
        self._in_head = self._in_message = False
        self._quiet_since = -math.inf
        self._clock: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._between and (self._turned_away(data) or self._taken(data)):
            return
        self._piece = len(data)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
        elif self._in_message and self.cycle is not None and self.cycle.response_complete:
            self._unread += len(data)
            if self._unread > self._max_unread:
                self.transport.close()
        if self._arriving:
            if self._clock is None:
                self._clock = self.loop.call_later(self._arrival_s, self._late)
        elif self._clock is not None:
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection."""
        self._stop_clock()
        super().connection_lost(exc)

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
        if len(self.pipeline) >= MAX_PIPELINED:
            # Its answers come in order, so that there is none to give to this request now.
            self.transport.close()
            raise _EndedError
        self._in_head = False
        super().on_headers_complete()

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

    def _turned_away(self, data: bytes) -> bool:
        """Whether that was all of a request which the door does not let in, and has been answered."""
        answer = quick_refusal(data, self._door, self._telemetry)
        if answer is None:
            return False
        self.transport.write(answer)
        self._quiet()
        return True

    def _taken(self, data: bytes) -> bool:
        """Whether that was all of a request which is as plain as most, and is being answered."""
        request = whole_request(data, self._scope.whole_paths)
        if request is None:
            return False
        self._door.arriving += 1
        self.cycle = exchange = _Exchange()  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(request, exchange))
        # Whoever stops the server waits for these.
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return True

    async def _answer(self, request: WholeRequest, exchange: _Exchange) -> None:
        try:
            status, headers, body = await self._scope.whole(request)
        except BaseException:
            # Whoever stops the server does not wait any longer.
            self.transport.close()
            raise
        exchange.response_complete = True
        if self.transport.is_closing():
            return
        lines = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        if not exchange.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        if not exchange.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._quiet()

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
            self.transport.close()

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, *parts: Any) -> None:
        self._door.arriving += 1
        super()._start_asgi_task(*parts)

    @property
    def _arriving(self) -> bool:
        return not self.transport.is_closing() and self._in_message

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
            self.transport.close()
        else:
            self.scope[_LATE] = True  # type: ignore[literal-required]
            self.cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn says which
        """Answer what the parser does not take, unless its connection has ended already."""
        if not self.transport.is_closing():
            self._refuse(b"400 Bad Request", "malformed-request", 400)

    def _refuse_head(self) -> None:
        self._refuse(b"431 Request Header Fields Too Large", "headers-too-large", 431)

    def _refuse(self, status: bytes, kind: str, number: int) -> None:
        body = b'{"type":"/problems/%s","title":"%s","status":%d}' % (kind.encode(), status[4:], number)
        head = b"HTTP/1.1 %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n" % (
            status,
            len(body),
        )
        self.transport.write(head + b"connection: close\r\n\r\n" + body)
        self.transport.close()
