"""Request bodies: read within limits, parsed once, and errors that name the field."""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from srp4ctr.contract.errors import BodyTimeout, BodyTooLarge, InvalidRequest, MalformedBody, Overloaded
from srp4ctr.contract.http_types import (
    BatchRequest,
    Body,
    EventsRequest,
    Impression,
    ImpressionsRequest,
    UserRequest,
)
from srp4ctr.contract.wrong_fields import BODY, invalid_request
from srp4ctr_service.bounded_http import is_late, is_malformed
from srp4ctr_service.formats import Format
from srp4ctr_service.settings import Settings

NUL = "must not contain the character NUL"
R = TypeVar("R", bound=Body)


@dataclass
class Held:
    """Bytes of bodies that have not arrived as a whole, of all requests."""

    size: int = 0


async def read_body(scope: Scope, receive: Receive, settings: Settings, held: Held) -> bytes:
    """The whole body; raises BodyTooLarge as soon as that is known, BodyTimeout, MalformedBody, ClientDisconnect, and Overloaded where those of
    others leave no room for it.
    """
    limit = settings.max_body_bytes
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(BODY, f"{int(announced)} bytes are more than the {limit} that the service takes")
    body = bytearray()
    try:
        while True:
            message = await receive()
            if is_late(scope):
                raise BodyTimeout(BODY, f"not all of it arrived within {settings.arrival_timeout_ms} ms")
            if is_malformed(scope):
                raise MalformedBody(BODY, "its chunks are not as HTTP has them")
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece: bytes = message.get("body", b"")
            ended = not message.get("more_body", False)
            if len(body) + len(piece) > limit:
                raise BodyTooLarge(BODY, f"more than the {limit} bytes that the service takes")
            if ended and not body:
                return piece
            body += piece
            held.size += len(piece)
            if ended:
                return bytes(body)
            if held.size > settings.max_held_bytes:
                raise Overloaded(
                    "bodies that have not arrived as a whole take all the room that there is", 1.0
                )
    finally:
        held.size -= len(body)


def parse(kind: type[R], body: bytes, written: Format, settings: Settings) -> R:
    """The request in a body; raises MalformedBody where it is not of the format, and InvalidRequest naming each field."""
    try:
        request: R = written.read(kind, body)
    except ValidationError as error:
        raise _invalid(error) from None
    _check_ids(request)
    _check_size(request, settings)
    return request


def _check_ids(request: Body) -> None:
    if isinstance(request, EventsRequest):
        for place, event in enumerate(request.events):
            for name, value in (("user_id", event.user_id), ("item_id", event.item_id)):
                if "\0" in value:
                    raise InvalidRequest(f"events[{place}].{name}", NUL)
    elif isinstance(request, ImpressionsRequest):
        for place, impression in enumerate(request.impressions):
            _check_items(impression, f"impressions[{place}].")
    elif isinstance(request, BatchRequest):
        for place, one in enumerate(request.requests):
            _check_items(one, f"requests[{place}].")
    else:
        assert isinstance(request, UserRequest)
        _check_items(request, "")


def _check_items(request: UserRequest | Impression, at: str) -> None:
    if "\0" in request.user_id:
        raise InvalidRequest(f"{at}user_id", NUL)
    # One search for all, instead of a pattern for each, which took most of the time of a request's parsing.
    if "\0" in "".join(request.item_ids):
        place = next(place for place, one in enumerate(request.item_ids) if "\0" in one)
        raise InvalidRequest(f"{at}item_ids[{place}]", NUL)


def _check_size(request: Body, settings: Settings) -> None:
    if isinstance(request, BatchRequest):
        candidates = sum(len(one.item_ids) for one in request.requests)
        most, field = settings.max_batch_candidates, "requests"
    elif isinstance(request, UserRequest):
        candidates, most, field = len(request.item_ids), settings.max_candidates, "item_ids"
    else:
        return
    if candidates > most:
        raise InvalidRequest(field, f"{candidates} candidates are more than the {most} allowed")
    if isinstance(request, BatchRequest):
        for place, one in enumerate(request.requests):
            _check_inline(one, settings.max_inline_items, f"requests[{place}].")
    else:
        _check_inline(request, settings.max_inline_items, "")


def _check_inline(request: UserRequest, most: int, at: str) -> None:
    if len(request.items) > most:
        raise InvalidRequest(f"{at}items", f"{len(request.items)} items are more than the {most} allowed")


def _invalid(error: ValidationError) -> InvalidRequest:
    if error.error_count() == 1:
        (only,) = error.errors(include_url=False, include_context=False, include_input=False)
        if only["type"] == "json_invalid":
            return MalformedBody(BODY, only["msg"])
    return invalid_request(error)
