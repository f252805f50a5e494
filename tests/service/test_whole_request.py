"""Requests that arrive in one piece are read by a pattern of our own: as the parser reads them, or not at all."""

import re
import socket
import time

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from srp4ctr_service import bounded_http
from srp4ctr_service.request_scope import Answer, RequestScope
from srp4ctr_service.whole_request import whole_request

PATHS = frozenset({b"/score", b"/events"})
BODY = b'{"user_id": "1", "item_ids": ["1", "2"]}'
KEY = "a-key-that-nobody-guesses"
LINES = (b"host: x", b"content-type: application/json", b"content-length: %d" % len(BODY))


def request(*lines, path=b"/score", body=BODY, method=b"POST", version=b"HTTP/1.1"):
    """The bytes of a request, with these header lines or the usual ones."""
    return b"\r\n".join([b"%b %b %b" % (method, path, version), *(lines or LINES), b"", body])


class Parsed:
    """What httptools, by which everything else is read, makes of some bytes."""

    def __init__(self, data):
        self.headers, self.url, self.body, self.messages, self.error = [], b"", b"", 0, False
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.error = True

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_headers_complete(self):
        self.method, self.version = self._parser.get_method(), self._parser.get_http_version()
        self.stays_open = self._parser.should_keep_alive()

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.messages += 1


def assert_read_alike(data):
    """What is taken as a whole request is the one request that the parser sees in it."""
    whole = whole_request(data, PATHS)
    if whole is None:
        return
    parsed = Parsed(data)
    assert not parsed.error
    assert (parsed.messages, parsed.method, parsed.version) == (1, b"POST", "1.1")
    assert parsed.stays_open
    assert (parsed.url, parsed.headers, parsed.body) == (whole.path.encode(), whole.headers, whole.body)


def test_a_plain_request_is_taken():
    """Its path, its headers and its body; whether it says that the connection stays open or not."""
    whole = whole_request(request(), PATHS)
    assert (whole.path, whole.body) == ("/score", BODY)
    assert whole.headers == [tuple(line.split(b": ")) for line in LINES]
    assert whole_request(request(*LINES, b"Connection: Keep-Alive"), PATHS).headers[-1] == (
        b"connection",
        b"Keep-Alive",
    )
    assert whole_request(request(b"CONTENT-LENGTH:0", body=b""), PATHS).body == b""
    assert_read_alike(request())


@pytest.mark.parametrize(
    "data",
    {
        "another path": request(path=b"/livez"),
        "another method": request(method=b"PUT"),
        "a query": request(path=b"/score?a=1"),
        "an older version": request(version=b"HTTP/1.0"),
        "no length": request(b"host: x"),
        "two lengths": request(*LINES, LINES[-1]),
        "a length that is no number": request(b"content-length: +40"),
        "not all of it": request()[:-1],
        "more than it": request() + b"P",
        "two requests": request() * 2,
        "chunks": request(b"transfer-encoding: chunked", LINES[-1]),
        "a question before the body": request(*LINES, b"expect: 100-continue"),
        "another protocol": request(*LINES, b"connection: upgrade", b"upgrade: websocket"),
        "the last request": request(*LINES, b"connection: close"),
        "the last request by a proxy": request(*LINES, b"proxy-connection: close"),
        "a space behind a value": request(b"x-request-id: a ", LINES[-1]),
        "a folded line": request(b"x: y", b" z", LINES[-1]),
        "a space before the colon": request(b"x : y", LINES[-1]),
        "a name of other characters": request("x\u00e9: y".encode(), LINES[-1]),
        "a value of other characters": request(b"x: \x00", LINES[-1]),
        "bare line ends": request().replace(b"\r\n", b"\n"),
        "a long head": request(b"x: " + b"y" * 10_000, LINES[-1]),
    }.items(),
    ids=lambda one: one[0],
)
def test_what_is_not_plain_is_left_to_the_parser(data):
    """Whatever could be read in more ways than one, or asks for more than an answer."""
    assert whole_request(data[1], PATHS) is None


_BYTES = st.one_of(
    st.sampled_from(
        [*LINES, b"\r\n", b"\r", b"\n", b":", b" ", b"\t", b"chunked", b"transfer-encoding: chunked", b"\x00"]
    ),
    st.binary(max_size=3),
)


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 4), _BYTES), max_size=4))
@example([])
def test_what_is_taken_the_parser_reads_alike(edits):
    """However a request is mutilated: it is not taken, or both see the same request in it."""
    data = request()
    for at, cut, put in edits:
        data = data[:at] + put + data[at + cut :]
    assert_read_alike(data)


_NAMES = st.text("abcXYZ019!#$%&'*+-.^_`|~ ", min_size=1, max_size=6).map(str.encode)
_VALUES = st.one_of(
    st.binary(max_size=6), st.sampled_from([b"close", b"keep-alive", b"5", b" 40\t", b"chunked"])
)
_KNOWN = st.sampled_from(
    [
        b"Connection",
        b"Proxy-Connection",
        b"Transfer-Encoding",
        b"Content-Length",
        b"Upgrade",
        b"TE",
        b"Expect",
    ]
)


@given(st.lists(st.tuples(st.one_of(_NAMES, _KNOWN), _VALUES), max_size=4), st.binary(max_size=5))
def test_headers_are_read_as_the_parser_reads_them(headers, body):
    """Whatever names and values there are beside the length."""
    lines = [b"%b: %b" % one for one in headers]
    assert_read_alike(request(*lines, b"content-length: %d" % len(body), body=body))


class Connection:
    """A connection to the service, and what has come over it."""

    def __init__(self, raw):
        self.raw, self.data = raw, b""

    def _more(self):
        piece = self.raw.recv(65536)
        assert piece, "the service has closed the connection"
        self.data += piece

    def answer(self):
        """The next answer: its status, its headers and its body, without what differs between any two."""
        while b"\r\n\r\n" not in self.data:
            self._more()
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        length = int(headers[b"content-length"])
        while len(self.data) < length:
            self._more()
        body, self.data = self.data[:length], self.data[length:]
        for name in (b"date", b"x-request-id"):
            assert headers.pop(name)
        return status, headers, re.sub(rb'"request_id":"[^"]*"', b"", body)

    def ended(self):
        """Whether the service has closed the connection."""
        return not self.data and self.raw.recv(1) == b""


@pytest.fixture
def wholes(monkeypatch):
    """The requests that are answered as a whole, from then on."""
    seen = []
    answer = RequestScope.whole

    def noted(scope, request):
        seen.append(request)
        return answer(scope, request)

    monkeypatch.setattr(RequestScope, "whole", noted)
    return seen


def test_a_request_in_one_piece_passes_by_the_parser(connection, wholes):
    """And one in two does not."""
    connection.raw.sendall(request())
    assert connection.answer()[0].startswith(b"HTTP/1.1 200")
    assert [one.body for one in wholes] == [BODY]
    connection.raw.sendall(request()[:-5])
    time.sleep(0.2)
    connection.raw.sendall(request()[-5:])
    assert connection.answer()[0].startswith(b"HTTP/1.1 200")
    assert len(wholes) == 1


def test_who_has_no_key_is_told_so_before_anything_else(
    first, activate, settings, start, monkeypatch, tmp_path
):
    """Also where there is no time for the request: how busy the service is, is for those who may ask."""
    activate(first)
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    client = start(settings.model_copy(update={"api_keys_file": keys}))
    monkeypatch.setattr(
        bounded_http, "quick_refusal", lambda *_: Answer(503, [(b"content-length", b"0")], b"")
    )
    address = client.base_url.host, client.base_url.port
    found = []
    for lines in (LINES, (*LINES, f"authorization: Bearer {KEY}".encode())):
        with socket.create_connection(address, timeout=30) as raw:
            raw.sendall(request(*lines))
            found.append(raw.recv(65536).split(b" ")[1])
    assert found == [b"401", b"503"]


@pytest.fixture
def connection(shared_api):
    """A connection to the service."""
    with socket.create_connection((shared_api.base_url.host, shared_api.base_url.port), timeout=30) as raw:
        yield Connection(raw)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/score", BODY),
        (b"/rank", BODY),
        (b"/score", b"{"),
        (b"/score", b'{"user_id": "1"}'),
        (b"/score/batch", b'{"requests": [%b]}' % BODY),
        (b"/nothing", BODY),
    ],
)
def test_in_one_piece_or_in_two(connection, path, body):
    """An answer does not depend on how its request arrived, be it scores or a problem; a connection may have both kinds."""
    data = request(*LINES[:2], b"content-length: %d" % len(body), path=path, body=body)
    connection.raw.sendall(data)
    whole = connection.answer()
    connection.raw.sendall(data[:30])
    time.sleep(0.05)
    connection.raw.sendall(data[30:])
    assert connection.answer() == whole
    connection.raw.sendall(data)
    assert connection.answer() == whole


def test_answers_keep_their_order(connection):
    """Requests that come while one is being answered wait for it, whole or not."""
    bodies = [b'{"user_id": "1", "item_ids": [%b]}' % b",".join([b'"1"'] * number) for number in (900, 2)]
    many, few = (request(b"content-length: %d" % len(body), body=body) for body in bodies)
    for piece in (many, few, many + few[:40], few[40:], few):
        connection.raw.sendall(piece)
        time.sleep(0.001)
    scores = [connection.answer()[2].split(b'"scores":[')[1].split(b"]")[0] for _ in range(5)]
    assert [one.count(b",") + 1 for one in scores] == [900, 2, 900, 2, 2]


def test_the_last_request_of_a_connection(connection):
    """Who says that a request is the last is told so, and the connection ends."""
    connection.raw.sendall(request())
    assert b"connection" not in connection.answer()[1]
    connection.raw.sendall(request(*LINES, b"connection: close"))
    assert connection.answer()[1][b"connection"] == b"close"
    assert connection.ended()


def test_an_idle_connection_ends(connection):
    """Some seconds after its last answer, whoever read the request."""
    connection.raw.sendall(request())
    connection.answer()
    began = time.monotonic()
    assert connection.ended()
    assert time.monotonic() - began > 2


def test_a_client_that_leaves_harms_nobody(shared_api, connection):
    """Neither before its answer nor after; the next request is answered as ever."""
    where = (shared_api.base_url.host, shared_api.base_url.port)
    for _ in range(3):
        with socket.create_connection(where, timeout=30) as leaves:
            leaves.sendall(request())
    connection.raw.sendall(request())
    assert connection.answer()[0] == b"HTTP/1.1 200 OK"
