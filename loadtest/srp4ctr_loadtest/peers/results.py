"""What a run found, as it is kept: one row for each server, number of candidates and rate of the open loop."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DIGITS = 4
WRONG = "wrong: "
"""How the error of a server begins that answers wrongly; others could not be started or asked."""


@dataclass(frozen=True)
class Row:
    """CPU milliseconds a request of all the server's processes, requests a second of its core, and an open loop's latencies.

    `rate_rps` is what the open loop asked for; None where there is no server to ask. `error` is why nothing is known.
    """

    server: str
    candidates: int | None
    cpu_ms: float | None = None
    rps: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    rate_rps: float | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As in serving.json, which has no `error` where there is none."""
        fields = {
            name: round(value, DIGITS) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        if self.error is None:
            del fields["error"]
        return fields


@dataclass(frozen=True)
class Results:
    """A run's rows, the servers' titles in the order of the report, the common rates, and what it ran on."""

    rows: Sequence[Row]
    titles: Mapping[str, str]
    common_rps: Mapping[int, float]
    about: Mapping[str, str]
    notes: Sequence[str] = field(default_factory=list)

    def candidates(self) -> list[int]:
        """The numbers of candidates that were asked for."""
        return sorted({row.candidates for row in self.rows if row.candidates is not None})

    def closed(self, server: str, candidates: int) -> Row | None:
        """A row of the server: in all of them CPU and requests a second are the closed loop's."""
        return next(iter(self._of(server, candidates)), None)

    def at_half(self, server: str, candidates: int) -> Row | None:
        """The row at half of the server's own maximum."""
        rows = self._of(server, candidates)
        return next((row for row in rows if row.rps and row.rate_rps == row.rps / 2), None)

    def at_common(self, server: str, candidates: int) -> Row | None:
        """The row at the rate that all can take."""
        rows = self._of(server, candidates)
        return next((row for row in rows if row.rate_rps == self.common_rps.get(candidates)), None)

    def errors(self) -> Mapping[str, str]:
        """Why nothing, or not all, is known of a server."""
        return {row.server: row.error for row in self.rows if row.error is not None}

    def wrong(self) -> list[str]:
        """The servers that answered wrongly."""
        return [server for server, error in self.errors().items() if error.startswith(WRONG)]

    def _of(self, server: str, candidates: int) -> list[Row]:
        return [
            row
            for row in self.rows
            if row.server == server and row.candidates == candidates and not row.error
        ]
