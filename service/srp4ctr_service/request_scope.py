"""What surrounds every request: an id, one log line, one count, and an answer even for what nobody foresaw."""

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srp4ctr_service.telemetry import Telemetry

log = structlog.get_logger()

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_SCOPE_KEY = "srp4ctr.request"


@dataclass
class RequestInfo:
    """A request's id, its start by `time.perf_counter()`, and what its log line shall say besides."""

    request_id: str
    started: float
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> Self:
        """The information that belongs to a request."""
        info: Self = request.scope[_SCOPE_KEY]
        return info


class RequestMiddleware:
    """Plain ASGI, because starlette's BaseHTTPMiddleware costs a task and two queues a request."""

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        problem: Callable[[Exception, RequestInfo, Telemetry], Response],
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        info = RequestInfo(_request_id(scope), time.perf_counter())
        scope[_SCOPE_KEY] = info
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, info.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                # The answer has begun, so all that is left is to let the server cut it off.
                raise
            await self._problem(error, info, self._telemetry)(scope, receive, send_with_id)
        finally:
            self._record(scope, info, status)

    def _record(self, scope: Scope, info: RequestInfo, status: int) -> None:
        # The template and not the path, which is the client's own text.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._telemetry.count_request(route, status)
        log.info(
            "request",
            request_id=info.request_id,
            method=scope["method"],
            route=route,
            status=status,
            ms=round(1000 * (time.perf_counter() - info.started), 3),
            **info.notes,
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == HEADER and _SANE.fullmatch(value):
            text: str = value.decode()
            return text
    return secrets.token_hex(8)
