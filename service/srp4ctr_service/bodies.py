"""Request bodies: read within limits, parsed once, and errors that name the field."""

import asyncio
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from srp4ctr.contract.errors import BodyTimeout, BodyTooLarge, InvalidRequest, MalformedBody
from srp4ctr.contract.http_types import ScoreRequest
from srp4ctr_service.settings import Settings

BODY = "body"
MAX_ERRORS = 20
_MAX_FIELD = 100


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body; raises BodyTooLarge as soon as that is known, and BodyTimeout."""
    limit = settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(BODY, f"{int(announced)} bytes are more than the {limit} that the service takes")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_ms / 1000):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(BODY, f"more than the {limit} bytes that the service takes")
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeout(BODY, f"not all of it arrived within {settings.body_timeout_ms} ms") from None
    return b"".join(chunks)


def parse_score_request(body: bytes, max_candidates: int) -> ScoreRequest:
    """The request in a body; raises MalformedBody where it is not JSON, and InvalidRequest naming each field."""
    try:
        request = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None
    if len(request.item_ids) > max_candidates:
        raise InvalidRequest(
            "item_ids", f"{len(request.item_ids)} candidates are more than the {max_candidates} allowed"
        )
    return request


def _invalid(error: ValidationError) -> InvalidRequest:
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        if one["type"] == "json_invalid":
            return MalformedBody(BODY, one["msg"])
        if len(found) == MAX_ERRORS:
            break
        field, message = _field_and_message(one["type"], one["loc"], one["msg"])
        found.setdefault(field, message)
    first, *others = found.items()
    return InvalidRequest(*first, *others)


def _field_and_message(kind: str, location: tuple[Any, ...], message: str) -> tuple[str, str]:
    if location[:1] == ("context",) and len(location) > 1:
        # What follows names the members of the union, each with an error of its own.
        return _path(location[:2]), "must be a string, a number, a boolean or null"
    if kind == "string_pattern_mismatch":
        return _path(location), "must not contain the character NUL"
    return _path(location), message


def _path(location: tuple[Any, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return (path if len(path) <= _MAX_FIELD else f"{path[:_MAX_FIELD]}...") or BODY
