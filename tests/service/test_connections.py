"""Connections: who says nothing, reads nothing or comes in great numbers is cut off, and others go on."""

import socket
import time
from contextlib import ExitStack, suppress

import pytest

from srp4ctr_service.bounded_http import SPARE_CONNECTIONS

GOOD = b'{"user_id": "1", "item_ids": ["1", "2"]}'
REQUEST = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(GOOD) + GOOD


@pytest.fixture
def few(first, activate, settings, start):
    """A service that takes few connections and little that is not there as a whole, and its address."""
    activate(first)
    changed = {"max_connections": 4, "max_held_bytes": 100_000, "arrival_timeout_ms": 2000}
    client = start(settings.model_copy(update=changed))
    # The client of the fixture has none of them open.
    client.close()
    return client.base_url.host, client.base_url.port


def connect(where):
    """A connection that gives up after a while."""
    return socket.create_connection(where, timeout=30)


def until_closed(raw):
    """All that the service sends before it closes the connection."""
    data = b""
    while piece := raw.recv(65536):
        data += piece
    return data


def ended(raw, data):
    """Whether the connection has ended when these are sent over it."""
    try:
        raw.sendall(data)
        return raw.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def is_answered(where):
    """Whether a new connection gets scores."""
    with connect(where) as raw:
        raw.sendall(REQUEST)
        return raw.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("said", [b"", b"\r\n", REQUEST], ids=["nothing", "an empty line", "a request"])
def test_who_says_nothing_more_is_cut_off(few, said):
    """After some seconds, whether the connection has been used or not."""
    with connect(few) as raw:
        raw.sendall(said)
        began = time.monotonic()
        data = until_closed(raw)
        assert time.monotonic() - began > 2
        assert data.startswith(b"HTTP/1.1 200 ") if said is REQUEST else data == b""


def test_empty_lines_do_not_keep_a_connection(few):
    """Whoever sends nothing but these is cut off all the same."""
    with connect(few) as raw:
        give_up_at = time.monotonic() + 30
        raw.settimeout(0.5)
        while not ended(raw, b"\r\n"):
            assert time.monotonic() < give_up_at


def test_one_connection_too_many_is_told_so(few, wait_until):
    """It gets a 503 and is closed, which is counted; those that are open go on, and when one of them ends another is taken."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(few)) for _ in range(4)]
        for raw in opened:
            raw.sendall(REQUEST)
            assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
        with connect(few) as one_more:
            one_more.sendall(REQUEST)
            refused = until_closed(one_more)
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"retry-after: 1\r\n" in refused
        assert b"/problems/too-many-connections" in refused
        with connect(few) as another:
            another.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            metrics = until_closed(another)
        assert b'srp4ctr_problems_total{type="too-many-connections"} 1.0' in metrics
        opened[0].sendall(REQUEST)
        assert opened[0].recv(65536).startswith(b"HTTP/1.1 200 ")
        opened[0].close()
        wait_until(lambda: is_answered(few))


def test_health_is_told_over_the_most_connections(few):
    """Whoever looks whether the process lives is answered, once, even where nobody else is taken any more."""
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(few))
        for path in (b"/livez", b"/readyz?verbose"):
            with connect(few) as raw:
                raw.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
                answer = until_closed(raw)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close\r\n" in answer
        # Not without end: what is far over the most is refused before it asks.
        for _ in range(SPARE_CONNECTIONS):
            stack.enter_context(connect(few))
        with connect(few) as raw:
            assert b"/problems/too-many-connections" in until_closed(raw)


@pytest.mark.parametrize("target", [b"CONNECT example.com:443", b"GET http://example.com"])
def test_a_target_that_is_no_path_is_malformed(few, target):
    """It gets a 400, as whatever is no request."""
    with connect(few) as raw:
        raw.sendall(target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"/problems/malformed-request" in answer


def test_a_body_whose_chunks_are_wrong_is_told_so_at_once(few):
    """Nobody waits until the request is late."""
    with connect(few) as raw:
        began = time.monotonic()
        raw.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n")
        answer = until_closed(raw)
        assert time.monotonic() - began < 2
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"/problems/malformed-body" in answer


def test_a_large_body_does_not_make_the_next_head_too_long(few):
    """What came with the end of the request before is no part of the head."""
    body = b'{"user_id": "1", "item_ids": ["1", "2"]%b}' % (b" " * 60_000)
    first = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with connect(few) as raw:
        raw.sendall(first)
        time.sleep(0.2)
        raw.sendall(body + REQUEST[:20])
        answers = raw.recv(65536)
        assert answers.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" not in answers
        raw.sendall(REQUEST[20:])
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("then", [b"nonsense\r\n\r\n", b"GET /livez HTTP/1.1\r\nx: " + b"y" * 40_000])
def test_what_is_being_answered_gets_its_own_answer(few, then):
    """Whatever comes behind it that can only be refused."""
    with connect(few) as raw:
        raw.sendall(REQUEST + then)
        answer = until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1" not in answer[9:]


def test_bodies_that_do_not_end_leave_room_for_others(few):
    """Together they take so much memory and no more; one that is there as a whole needs none of it."""
    head = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n"
    with connect(few) as first, connect(few) as second:
        first.sendall(head + b" " * 80_000)
        time.sleep(0.2)
        second.sendall(head + b" " * 80_000)
        answer = second.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"/problems/overloaded" in answer
        assert is_answered(few)
        # What did not end in time gives its room back.
        assert first.recv(65536).startswith(b"HTTP/1.1 408 ")
    with connect(few) as third:
        third.sendall(head + b" " * 80_000)
        time.sleep(0.2)
        third.sendall(b" " * 10_000)
        assert third.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_who_does_not_read_is_cut_off(few):
    """Answers that nobody takes do not stay in memory: who reads when it is too late gets no more than the network had."""
    ids = b",".join([b'"1"'] * 2000)
    body = b'{"user_id": "1", "item_ids": [%b]}' % ids
    request = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    sent = 0
    with connect(few) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        raw.settimeout(1.0)
        # Ten times as many answers as the network keeps; at some point no request is taken either.
        with suppress(TimeoutError):
            for _ in range(600):
                raw.sendall(request)
                sent += 1
        time.sleep(4)
        raw.settimeout(30)
        data = b""
        with suppress(ConnectionError):
            data = until_closed(raw)
    assert data.count(b"HTTP/1.1 ") < sent
    assert is_answered(few)
