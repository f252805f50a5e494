"""Every error that this project raises for a reason outside its own code.

    Srp4ctrError
    ├── ConfigError            a configuration or schema is wrong; names the key
    ├── DataError              a table does not fit the schema; names the table and the column
    ├── InvalidRequest         a request is wrong; carries the field's path
    │   ├── MalformedBody      the body is not JSON in UTF-8
    │   ├── BodyTooLarge       the body is larger than the service takes
    │   └── BodyTimeout        the body did not arrive in time
    ├── NotAuthorized          a request without a valid API key
    ├── NoActiveModel          the service has no model to score with, yet
    ├── Overloaded             the service has more to do than it can; carries when to try again
    ├── DeadlineMissed         a request's deadline passed before even the cheapest answer
    ├── BundleError            a bundle is missing, damaged or of an unknown format
    │   └── ExportMismatch     an exported graph does not compute what the torch model computes
    ├── GateFailed             a version is worse than the active one by more than is allowed, or lacks items of it
    ├── StateError             bytes that cannot be used as a user state
    │   ├── StateCorrupt       truncated, or the checksum does not hold
    │   └── StateForeign       written by a model with another fingerprint
    ├── StoreError             something is wrong with what Redis holds
    │   ├── StoreUnavailable   Redis did not answer within its time limit
    │   └── VersionIncomplete  a version whose publishing has not been completed
    ├── ServiceNotReady        a service started as a process did not become ready
    └── DependencyMissing      an optional dependency is not installed; names the extra

Bugs of our own are `assert`s, never one of these.
"""


class Srp4ctrError(Exception):
    """Base of the tree above; its text says what is wrong and what to do about it."""


class ConfigError(Srp4ctrError):
    """A configuration or schema is wrong."""


class DataError(Srp4ctrError):
    """A table does not fit the schema."""


class InvalidRequest(Srp4ctrError):  # noqa: N818 -- it reads as what it is; the tree's root says Error
    """A request is wrong at `field`, a path such as `context.hour` or `item_ids[3]`.

    `others` are further (field, message) pairs; `errors` has them all.
    """

    def __init__(self, field: str, message: str, *others: tuple[str, str]) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.errors = ((field, message), *others)


class MalformedBody(InvalidRequest):
    """The body is not JSON in UTF-8."""


class BodyTooLarge(InvalidRequest):
    """The body is larger than the service takes."""


class BodyTimeout(InvalidRequest):
    """The body did not arrive in time."""


class NotAuthorized(Srp4ctrError):  # noqa: N818
    """A request has no valid API key."""


class NoActiveModel(Srp4ctrError):  # noqa: N818
    """The service has no model to score with, yet."""


class Overloaded(Srp4ctrError):  # noqa: N818
    """The service has more to do than it can; in `retry_after_s` seconds it may have less."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(f"{message}; try again, or ask another replica")
        self.retry_after_s = retry_after_s


class DeadlineMissed(Srp4ctrError):  # noqa: N818
    """A request's deadline passed before even the cheapest answer could be given."""


class BundleError(Srp4ctrError):
    """A bundle is missing, damaged or of an unknown format."""


class ExportMismatch(BundleError):  # noqa: N818
    """An exported graph does not compute what the torch model computes."""


class GateFailed(Srp4ctrError):  # noqa: N818
    """A version is worse than the active one by more than the configuration allows, or lacks items that were added to it; names
    the metrics and their limits, or the items."""


class StateError(Srp4ctrError):
    """Bytes that cannot be used as a user state."""


class StateCorrupt(StateError):  # noqa: N818
    """The bytes are truncated, or their checksum does not hold."""


class StateForeign(StateError):  # noqa: N818
    """The state was written by a model with another fingerprint."""


class StoreError(Srp4ctrError):
    """Something is wrong with what Redis holds."""


class StoreUnavailable(StoreError):  # noqa: N818
    """Redis did not answer within its time limit."""


class VersionIncomplete(StoreError):  # noqa: N818
    """A version whose publishing has not been completed."""


class ServiceNotReady(Srp4ctrError):  # noqa: N818
    """A service that was started as a process did not become ready."""


class DependencyMissing(Srp4ctrError):  # noqa: N818
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; install it with: pip install 'srp4ctr[{extra}]'")
