"""uvicorn's HTTP protocol, with limits on how large a request's head may be and how long the request may take to arrive."""

import asyncio
import math
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from srp4ctr_service.door import Door
from srp4ctr_service.quick_refusal import quick_refusal
from srp4ctr_service.telemetry import Telemetry

MAX_HEAD_BYTES = 32 * 1024
"""Of a request's line and headers together: four times what proxies commonly pass on. The parser has no limit."""
_LATE = "srp4ctr.late"


def is_late(scope: Scope) -> bool:
    """Whether the request's body has not arrived in time, so that there is nothing to wait for any more."""
    return _LATE in scope


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 to a head that is too long and 408 to one that does not end; tells the app of a body that does not.

    A clock runs only for a request that was not there at once, so that the others, nearly all, cost nothing.
    """

    def __init__(self, *parts: Any, arrival_s: float, **named: Any) -> None:
        """As uvicorn makes them, for requests that must arrive within `arrival_s` seconds of their first byte."""
        super().__init__(*parts, **named)
        app: Any = self.app
        self._door: Door = app.door
        self._telemetry: Telemetry = app.telemetry
        self._arrival_s = arrival_s
        self._head_bytes = 0
        self._in_head = self._in_message = False
        self._turned_away_at = -math.inf
        self._clock: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._between and self._turned_away(data):
            return
        super().data_received(data)
        if self._in_head:
            # A head that ends within the piece that it began in is no longer than a read.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", "headers-too-large", 431)
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
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of its head."""
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
        # A clock is not set anew for each, which would be a good part of what it costs.
        self._turned_away_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)
        return True

    def timeout_keep_alive_handler(self) -> None:
        """The end of the time that a connection may be idle, unless it was not."""
        left_s = self._turned_away_at + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._keep_alive_for(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, *parts: Any) -> None:
        self._door.arriving += 1
        super()._start_asgi_task(*parts)

    @property
    def _arriving(self) -> bool:
        return not self.transport.is_closing() and (
            self._in_head
            or (self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete)
        )

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
        else:
            self.scope[_LATE] = True  # type: ignore[literal-required]
            self.cycle.message_event.set()

    def _refuse(self, status: bytes, kind: str, number: int) -> None:
        body = b'{"type":"/problems/%s","title":"%s","status":%d}' % (kind.encode(), status[4:], number)
        head = b"HTTP/1.1 %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n" % (
            status,
            len(body),
        )
        self.transport.write(head + b"connection: close\r\n\r\n" + body)
        self.transport.close()
