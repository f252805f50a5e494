"""Whom there is no time for, decided before a request's body is parsed: refusing must cost next to nothing.

Under overload most requests are answered cheaply, and what they cost is taken from those that are scored. An answer from the
prior costs nearly as much as one in full, parsing half of that. So the door lets in what is likely to be scored in time,
of the others a few for the prior, and refuses the rest by what can be seen of a body from outside: its length and deadline.
"""

import contextlib
import re

import ormsgpack
import structlog

from srp4ctr.contract.errors import Overloaded
from srp4ctr_service.background import every
from srp4ctr_service.compute import Compute

log = structlog.get_logger()

MARGIN = 0.6
"""Of a deadline: what is let in shall be there in time although estimates are wrong, and the client's clock began before ours."""
PRIORS = 50.0
"""Answers from the prior that may be let in at once. Each request that nobody was waiting before allows one more, and runs do."""
PRIORS_A_RUN = 0.1
_WEIGHT = 0.05
_TELL_EVERY_S = 1.0
_JSON_DEADLINE = re.compile(rb'"deadline_ms"\s*:\s*([0-9]{1,6}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?)')
_MSGPACK_DEADLINE = b"\xabdeadline_ms"
_MSGPACK_SIZES = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5}


class Door:
    """Looks at requests while others wait for the model; with nobody waiting, everybody is let in."""

    def __init__(self, compute: Compute, deadline_ms: float) -> None:
        """`deadline_ms` is that of requests that give none."""
        self._compute = compute
        self._deadline_ms = deadline_ms
        self._bytes_per_row = 0.0
        self._usual_rows = 0.0
        self._priors = PRIORS
        self._as_prior = False
        self._done = 0
        self.arriving = 0
        """Requests that were read in this turn of the event loop, and not begun."""
        self.refused = 0
        """Requests since it was told last."""

    @property
    def watched(self) -> bool:
        """Whether there is any reason to look."""
        return self._compute.wait_s > 0 or self.arriving > 0

    def learn(self, length: int, rows: int) -> None:
        """How many rows a body of so many bytes had."""
        per_row = length / rows
        if not self._bytes_per_row:
            self._bytes_per_row, self._usual_rows = per_row, rows
        self._bytes_per_row += _WEIGHT * (per_row - self._bytes_per_row)
        self._usual_rows += _WEIGHT * (rows - self._usual_rows)

    def look(self, body: bytes) -> float | None:
        """The seconds that others take, where they leave no time for a request with that body, which is read but now."""
        return self._look(body, self.arriving)

    def check(self, body: bytes) -> None:
        """Let a request with that body come in; raises Overloaded where there is no time for it."""
        wait_s = self._look(body, 0)
        if wait_s is not None:
            self.refused += 1
            raise Overloaded("other requests' candidates leave no time for these", wait_s)
        if self._as_prior:
            self._priors -= 1

    def _look(self, body: bytes, others: int) -> float | None:
        compute = self._compute
        wait_s = compute.wait_s
        self._as_prior = False
        if others:
            wait_s += others * compute.seconds(self._usual_rows)
        elif not wait_s:
            self._priors, self._done = min(PRIORS, self._priors + 1), compute.done
        if not wait_s:
            return None
        rows = len(body) / self._bytes_per_row if self._bytes_per_row else 0.0
        if not compute.over(rows):
            deadline_s = (_deadline_ms(body) or self._deadline_ms) / 1000
            if wait_s + compute.seconds(rows) <= MARGIN * deadline_s:
                return None
            self._priors = min(PRIORS, self._priors + PRIORS_A_RUN * (compute.done - self._done))
            self._done = compute.done
            if self._priors >= 1 + others:
                self._as_prior = True
                return None
        return wait_s

    def told(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While entered, log once a second how many were refused: a line for each would be most of what they cost."""
        return every(_TELL_EVERY_S, self._tell, "tell-of-refused")

    async def _tell(self) -> None:
        refused, self.refused = self.refused, 0
        if refused:
            log.warning("overload", refused=refused, waiting_ms=round(1000 * self._compute.wait_s, 1))


def _deadline_ms(body: bytes) -> float | None:
    """The deadline that a body of JSON or MessagePack gives, by its looks; None where it has none."""
    place = body.rfind(b'"deadline_ms"')
    if place >= 0:
        found = _JSON_DEADLINE.match(body, place)
        return None if found is None else float(found[1])
    place = body.rfind(_MSGPACK_DEADLINE)
    if place < 0:
        return None
    place += len(_MSGPACK_DEADLINE)
    size = _MSGPACK_SIZES.get(body[place], 1) if place < len(body) else 0
    try:
        value = ormsgpack.unpackb(body[place : place + size])
    except ormsgpack.MsgpackDecodeError:
        return None
    return float(value) if isinstance(value, int | float) and value > 0 else None
