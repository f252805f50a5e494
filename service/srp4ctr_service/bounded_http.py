"""uvicorn's HTTP protocol, with a limit on what comes before a body: the parser itself takes heads of any length."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 * 1024
"""Of a request's line and headers together: eight times what proxies commonly pass on."""
_TOO_LARGE = b'{"type":"/problems/headers-too-large","title":"The headers are too large","status":431}'
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_TOO_LARGE), _TOO_LARGE)
)


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 and closes the connection when a request's head is too long."""

    _head_bytes = 0
    _in_head = False

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        super().data_received(data)
        # A head that has ended within its first piece is no longer than a read.
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.write(_ANSWER)
                self.transport.close()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._in_head = False
        super().on_headers_complete()
