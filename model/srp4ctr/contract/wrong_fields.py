"""Which fields of a request are wrong, and why, in words that are the same on both sides of the wire."""

from typing import Any

from pydantic import ValidationError

from srp4ctr.contract.errors import InvalidRequest

BODY = "body"
MAX_ERRORS = 20
"""Fields that are named."""
MOST_ERRORS = 1000
"""That are looked at: of a hundred thousand the list alone takes a second."""
NOT_FINITE = "must be a finite number; leave it out where it is not known"
_MAX_FIELD = 100


def invalid_request(error: ValidationError) -> InvalidRequest:
    """The error of a request that does not fit its type: each wrong field once, the first `MAX_ERRORS` of them."""
    if error.error_count() > MOST_ERRORS:
        return InvalidRequest(
            BODY, f"has {error.error_count():,} errors; see the interface's document at /docs"
        )
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        if len(found) == MAX_ERRORS:
            break
        message = NOT_FINITE if one["type"] == "finite_number" else one["msg"]
        found.setdefault(_path(one["loc"]), message)
    first, *others = found.items()
    return InvalidRequest(*first, *others)


def _path(location: tuple[Any, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return (path if len(path) <= _MAX_FIELD else f"{path[:_MAX_FIELD]}...") or BODY
