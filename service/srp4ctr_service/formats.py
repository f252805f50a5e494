"""How bodies are written: JSON, or MessagePack with the same fields. An answer is written as its request was."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import orjson
import ormsgpack
from pydantic import BaseModel
from starlette.types import Scope

from srp4ctr.contract.errors import MalformedBody
from srp4ctr.contract.wrong_fields import BODY

M = TypeVar("M", bound=BaseModel)


class Format(NamedTuple):
    """A media type, what reads a request of that type, and what writes an answer, numpy arrays in it or not."""

    media_type: bytes
    read: Callable[[type[Any], bytes], Any]
    write: Callable[[dict[str, Any]], bytes]


def _read_json(kind: type[M], body: bytes) -> M:
    return kind.model_validate_json(body)


def _read_msgpack(kind: type[M], body: bytes) -> M:
    try:
        content = ormsgpack.unpackb(body)
    except ormsgpack.MsgpackDecodeError as error:
        raise MalformedBody(BODY, f"is not MessagePack: {error}") from None
    return kind.model_validate(content)


JSON = Format(b"application/json", _read_json, partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY))
MSGPACK = Format(
    b"application/msgpack", _read_msgpack, partial(ormsgpack.packb, option=ormsgpack.OPT_SERIALIZE_NUMPY)
)


def format_of(scope: Scope) -> Format:
    """MessagePack where the request says so, and otherwise JSON, whatever else it says."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            return MSGPACK if value.lower().startswith(MSGPACK.media_type) else JSON
    return JSON
