"""What Redis holds of a version: which is active, what has been published and how far, as hashes of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srp4ctr.contract.errors import StoreError


@dataclass(frozen=True)
class Active:
    """The version that services score with, and the one before it."""

    version: str
    fingerprint: str
    previous: str | None
    activated_at_ms: int


@dataclass(frozen=True)
class Published:
    """A version all of whose states are in Redis."""

    fingerprint: str
    users: int
    completed_at_ms: int


@dataclass(frozen=True)
class Progress:
    """How many users' states of a version have been written, by which model and from which prepared data."""

    fingerprint: str
    data: str
    users: int


def active_of(found: dict[Any, Any]) -> Active | None:
    """The active version of its hash; None where there is none. StoreError where it is something else."""
    if not found:
        return None
    try:
        fields = texts_of(found)
        previous = fields["previous"] or None
        return Active(fields["version"], fields["fingerprint"], previous, int(fields["activated_at_ms"]))
    except (KeyError, ValueError) as error:
        raise StoreError(f"Redis holds no usable active version: {error!r}; run: srp4ctr activate") from error


def name_of(found: bytes | None) -> str | None:
    """The name that a key holds."""
    # What is no text is no name either, and is refused as such.
    return None if found is None else found.decode(errors="replace")


def fields_of(fields: Mapping[str, object]) -> list[str]:
    """A hash as a script takes it: names and values in turns."""
    return [str(part) for pair in fields.items() for part in pair]


def texts_of(found: dict[Any, Any]) -> dict[str, str]:
    """A hash as it was read."""
    return {name.decode(): value.decode() for name, value in found.items()}
