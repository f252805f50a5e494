"""When a request is sent once more, and for how long its answer is waited for."""

import time

import httpx
from pydantic import BaseModel

from srp4ctr.contract.errors import InvalidRequest

TRIES = 2
SHORTEST_S = 0.001
OVERLOADED = 503


class Tries:
    """When one call may be sent, and how long its answer is waited for."""

    def __init__(self, request: BaseModel | None, timeout_s: float) -> None:
        """Raises InvalidRequest where the request's deadline is beyond the client's timeout."""
        deadline_ms = getattr(request, "deadline_ms", None)
        if deadline_ms is not None and deadline_ms > 1000 * timeout_s:
            raise InvalidRequest(
                "deadline_ms",
                f"is {deadline_ms:g}, and the client waits for {1000 * timeout_s:g} ms only; make it with a longer timeout_s",
            )
        self._began = time.monotonic()
        self._timeout_s = timeout_s
        # Whoever set a deadline has no use for an answer that was begun after it.
        self._worth_s = timeout_s if deadline_ms is None else deadline_ms / 1000
        self._left = TRIES

    def wait_s(self) -> float:
        """The longest wait for the next try's answer."""
        self._left -= 1
        return max(SHORTEST_S, self._timeout_s - (time.monotonic() - self._began))

    def pause_s(self, happened: httpx.Response | httpx.TransportError) -> float | None:
        """After which the request is to be sent once more; None where it is not."""
        if isinstance(happened, httpx.Response):
            if happened.status_code != OVERLOADED:
                return None
            after = happened.headers.get("retry-after", "0")
            # A date is nothing that this service says.
            pause_s = float(after) if after.isdecimal() else self._worth_s
        elif isinstance(happened, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout):
            pause_s = 0.0
        else:
            return None
        in_time = time.monotonic() - self._began + pause_s < self._worth_s
        return pause_s if self._left and in_time else None
