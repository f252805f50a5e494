"""503 to a scoring request by its bytes alone: not parsed as HTTP, without a task, for a tenth of what it costs otherwise."""

from srp4ctr.contract.http_types import Problem
from srp4ctr_service.door import Door
from srp4ctr_service.problems import MEDIA_TYPE, OVERLOADED, retry_after
from srp4ctr_service.request_scope import request_id
from srp4ctr_service.telemetry import Telemetry

_ROUTES = {f"POST {route} HTTP/1.1\r\n".encode(): route for route in ("/score", "/rank", "/score/batch")}
_LONGEST = max(map(len, _ROUTES))
_DIGITS = 10
_LENGTH = b"\r\ncontent-length:"
_REQUEST_ID = b"\r\nx-request-id:"
_ID = "REQUEST-ID"
_CONTENT = (
    Problem(
        type=f"/problems/{OVERLOADED.name}",
        title=OVERLOADED.title,
        status=OVERLOADED.status,
        detail="other requests' candidates leave no time for these; try again, or ask another replica",
        request_id=_ID,
    )
    .model_dump_json()
    .encode()
)
_BEFORE_ID, _AFTER_ID = _CONTENT.split(_ID.encode())
_ANSWER = (
    f"HTTP/1.1 {OVERLOADED.status} Service Unavailable\r\ncontent-type: {MEDIA_TYPE}\r\nretry-after: %d\r\n"
    "x-request-id: %b\r\ncontent-length: %d\r\n\r\n"
).encode()


def quick_refusal(data: bytes, door: Door, telemetry: Telemetry) -> bytes | None:
    """The answer to what is exactly one whole request that the door does not let in; None for all else, which is to be parsed."""
    if not door.watched:
        return None
    route = _ROUTES.get(data[: data.find(b"\n", 0, _LONGEST) + 1])
    if route is None:
        return None
    end = data.find(b"\r\n\r\n")
    head = data[: end + 2].lower()
    length = _value(data, head, _LENGTH)
    if end < 0 or len(length) > _DIGITS or not length.isdigit() or int(length) != len(data) - end - 4:
        return None
    wait_s = door.look(data, end + 4)
    if wait_s is None or _only_parsed(head):
        return None
    door.refused += 1
    telemetry.count_request(route, OVERLOADED.status)
    telemetry.count_problem(OVERLOADED.name)
    name = request_id(_value(data, head, _REQUEST_ID)).encode()
    size = len(_BEFORE_ID) + len(name) + len(_AFTER_ID)
    return b"".join((_ANSWER % (retry_after(wait_s), name, size), _BEFORE_ID, name, _AFTER_ID))


def _only_parsed(head: bytes) -> bool:
    """Whether the end of such a request is not for us to find, or there is more to do than to answer it."""
    return (
        b"\r\ntransfer-encoding" in head
        or b"\r\nexpect" in head
        or b"\r\nupgrade" in head
        or b"\r\nconnection: close" in head
        or head.count(_LENGTH) > 1
    )


def _value(data: bytes, head: bytes, name: bytes) -> bytes:
    """A header's value in `data`, whose head in small letters is `head`; empty where there is none."""
    place = head.find(name)
    if place < 0:
        return b""
    place += len(name)
    return data[place : head.find(b"\r\n", place)].strip()
