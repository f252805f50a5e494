"""A POST request that has arrived in one piece, taken apart by one pattern: for a third of what uvicorn's parser, its
scope and its events cost. What is not quite as plain as nearly all requests are is left to that parser.
"""

import re
from collections.abc import Container
from typing import NamedTuple

LONGEST_HEAD = 8 * 1024
# A request line and header lines as RFC 9112 has them, in ASCII, without folding; the first group is the path, the second the lines.
_HEAD = re.compile(
    rb"POST (/[a-z/]{1,32}) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n)+)\r\n"
)
_LENGTH = b"content-length"
_LENGTH_DIGITS = 10
_CONNECTION = b"connection"
_KEEP_ALIVE = b"keep-alive"
# What changes how a message is read, or asks for more than an answer.
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"proxy-connection"})

Headers = list[tuple[bytes, bytes]]


class WholeRequest(NamedTuple):
    """A request's path, its headers with their names in small letters, and its body."""

    path: str
    headers: Headers
    body: bytes


def whole_request(data: bytes, paths: Container[bytes]) -> WholeRequest | None:
    """What is exactly one whole request to one of these paths, on a connection that stays open; None for all else."""
    found = _HEAD.match(data, 0, LONGEST_HEAD)
    if found is None or found[1] not in paths:
        return None
    headers: Headers = []
    length = None
    for line in found[2].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.lstrip()
        if value[-1:].isspace():
            # The parser leaves it there.
            return None
        if name == _LENGTH:
            if length is not None or not value.isdigit() or len(value) > _LENGTH_DIGITS:
                return None
            length = int(value)
        elif name in _NOT_PLAIN or (name == _CONNECTION and value.lower() != _KEEP_ALIVE):
            return None
        headers.append((name, value))
    if length is None or length != len(data) - found.end():
        return None
    return WholeRequest(found[1].decode(), headers, data[found.end() :])
