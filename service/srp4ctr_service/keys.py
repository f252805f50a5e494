"""API keys: who may ask, where an operator has said so."""

import hashlib
from pathlib import Path

from starlette.types import Scope

from srp4ctr.contract.errors import ConfigError, NotAuthorized

OPEN = frozenset({"/livez", "/readyz"})
"""Paths that anybody may ask for: balancers and orchestrators have no key."""
MIN_LENGTH = 16
_SCHEME = b"bearer "


class ApiKeys:
    """The keys of a file; compared by their hashes, so that a comparison's time says nothing of a key."""

    def __init__(self, file: Path) -> None:
        """Raises ConfigError where the file has no keys, or has one that can be guessed."""
        try:
            keys = file.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"SRP4CTR_API_KEYS_FILE: {file} cannot be read: {error}") from error
        if not keys:
            raise ConfigError(f"SRP4CTR_API_KEYS_FILE: {file} has no key; write one a line")
        if min(map(len, keys)) < MIN_LENGTH:
            raise ConfigError(
                f"SRP4CTR_API_KEYS_FILE: {file} has a key of fewer than {MIN_LENGTH} characters"
            )
        self._hashes = frozenset(_hash(key.encode()) for key in keys)

    def check(self, scope: Scope) -> None:
        """Return if the request may be answered; raises NotAuthorized."""
        if scope["path"] in OPEN:
            return
        for name, value in scope["headers"]:
            if name == b"authorization" and value[: len(_SCHEME)].lower() == _SCHEME:
                if _hash(value[len(_SCHEME) :].strip()) in self._hashes:
                    return
                raise NotAuthorized("the API key is not one of the service's")
        raise NotAuthorized("send an API key as `Authorization: Bearer KEY`")


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
