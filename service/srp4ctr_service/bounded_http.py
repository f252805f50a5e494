"""uvicorn's HTTP protocol, with limits on how large a request's head may be and how long the request may take to arrive."""

import asyncio
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
        self._arrival_s = arrival_s
        self._head_bytes = 0
        self._in_head = False
        self._clock: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
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
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._in_head = False
        super().on_headers_complete()

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
