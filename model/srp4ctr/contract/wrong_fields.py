"""Which fields of a request are wrong, and why, in words that are the same on both sides of the wire."""

from typing import Any

from pydantic import ValidationError

from srp4ctr.contract.errors import InvalidRequest

BODY = "body"
MAX_ERRORS = 20
NOT_FINITE = "must be a finite number; leave it out where it is not known"
_MAX_FIELD = 100
# Fields with values of several types, and how many parts of a path name one of these.
_VALUES = {"context": 2, "candidate_features": 3, "user_features": 2, "items": 3, "features": 2}


def invalid_request(error: ValidationError) -> InvalidRequest:
    """The error of a request that does not fit its type: each wrong field once, the first `MAX_ERRORS` of them."""
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        field, message = _field_and_message(one["loc"], one["msg"])
        if one["type"] == "finite_number":
            # Of the types that the value is not, the one that says why.
            found[field] = NOT_FINITE
        elif field not in found:
            if len(found) == MAX_ERRORS:
                break
            found[field] = message
    first, *others = found.items()
    return InvalidRequest(*first, *others)


def _field_and_message(location: tuple[Any, ...], message: str) -> tuple[str, str]:
    # What follows a value of several types names those, each with an error of its own.
    values = next((place for place, part in enumerate(location) if part in _VALUES), None)
    if values is not None and len(location) > values + _VALUES[str(location[values])]:
        shown = location[: values + _VALUES[str(location[values])]]
        return _path(shown), "must be a string, a number, a boolean or null"
    return _path(location), message


def _path(location: tuple[Any, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return (path if len(path) <= _MAX_FIELD else f"{path[:_MAX_FIELD]}...") or BODY
