"""What surrounds every request: an id, one log line, one count, and an answer even for what nobody foresaw."""

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srp4ctr.contract.errors import NotAuthorized
from srp4ctr_service.door import Door
from srp4ctr_service.formats import JSON, Format
from srp4ctr_service.keys import ApiKeys
from srp4ctr_service.routing import RAISED
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.tracing import Attribute, Trace, Tracing
from srp4ctr_service.whole_request import Headers, WholeRequest

log = structlog.get_logger()

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PROCESS = secrets.token_hex(4)
_NUMBERS = itertools.count()
_SCOPE_KEY = "srp4ctr.request"


@dataclass
class RequestInfo:
    """A request's id, its start by `time.perf_counter()`, what its log line shall say besides, and its body's size and format."""

    request_id: str
    started: float
    notes: dict[str, Any] = field(default_factory=dict)
    format: Format = JSON
    body_bytes: int = 0
    trace: Trace | None = None

    @classmethod
    def of(cls, request: Request) -> Self:
        """The information that belongs to a request."""
        info: Self = request.scope[_SCOPE_KEY]
        return info

    def note_stages(self, began: float, seconds: Mapping[str, float]) -> None:
        """Have stages traced that followed one another, the first from `began` on, where the request is."""
        if self.trace is not None:
            for stage, took in seconds.items():
                self.trace.stages.append((stage, began, began + took))
                began += took


Shortcut = Callable[[Scope, Receive, RequestInfo], Awaitable[bytes]]
"""Gives the body that answers a POST request of one path, and sets its format."""


class Answer(NamedTuple):
    """What is sent: status, headers and body."""

    status: int
    headers: Headers
    body: bytes


class RequestScope:
    """The outermost ASGI app.

    Requests of `shortcuts`, by path, do not pass through the framework, whose layers cost as much CPU as all else
    around the model; the framework's app has the same paths for its document, and answers all other requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        problem: Callable[[Exception, RequestInfo, Telemetry], Response],
        shortcuts: Mapping[str, Shortcut],
        keys: ApiKeys | None,
        door: Door,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self.telemetry = telemetry
        self._problem = problem
        self._shortcuts = shortcuts
        self._keys = keys
        self.door = door
        self._tracing = tracing
        self.whole_paths = frozenset(path.encode() for path in shortcuts)
        """Paths of the requests that `whole` answers."""
        self._logs = log.is_enabled_for(logging.INFO)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shortcut = self._shortcuts.get(scope["path"]) if scope["method"] == "POST" else None
        if shortcut is None:
            await self._through_framework(scope, receive, send)
            return
        status, headers, body = await self._shortly(shortcut, scope, receive)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def allows(self, request: WholeRequest) -> bool:
        """Whether the request has a key, where keys are asked for."""
        if self._keys is not None:
            try:
                self._keys.check({"path": request.path, "headers": request.headers})
            except NotAuthorized:
                return False
        return True

    async def whole(self, request: WholeRequest) -> Answer:
        """The answer to a request that is there as a whole; its path is one of `whole_paths`."""
        scope: Scope = {"method": "POST", "path": request.path, "headers": request.headers}

        async def receive() -> Message:
            return {"type": "http.request", "body": request.body}

        return await self._shortly(self._shortcuts[request.path], scope, receive)

    async def _shortly(self, shortcut: Shortcut, scope: Scope, receive: Receive) -> Answer:
        """What a shortcut answers, or the problem that it has."""
        info = self._begun(scope)
        try:
            if self._keys is not None:
                self._keys.check(scope)
            body = await shortcut(scope, receive, info)
            length = (b"content-length", str(len(body)).encode())
            answer = Answer(200, [(b"content-type", info.format.media_type), length], body)
        except Exception as error:  # noqa: BLE001 -- each becomes the answer that it is
            problem = self._problem(error, info, self.telemetry)
            answer = Answer(problem.status_code, problem.raw_headers, bytes(problem.body))
        answer.headers.append((HEADER, info.request_id.encode()))
        self._record(scope, scope["path"], info, answer.status)
        return answer

    async def _through_framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        info = self._begun(scope)
        id_header = (HEADER, info.request_id.encode())
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        try:
            if self._keys is not None:
                self._keys.check(scope)
            await self._app(scope, receive, send_with_id)
            if RAISED in scope:
                raise scope[RAISED]
        except Exception as error:
            if status:
                # The answer has begun, so all that is left is to let the server cut it off.
                raise
            await self._problem(error, info, self.telemetry)(scope, receive, send_with_id)
        finally:
            # The template and not the path, which is the client's own text.
            self._record(scope, getattr(scope.get("route"), "path", "unmatched"), info, status)

    def _begun(self, scope: Scope) -> RequestInfo:
        self.door.arriving -= 1
        info = RequestInfo(_request_id(scope), time.perf_counter())
        scope[_SCOPE_KEY] = info
        if self._tracing is not None:
            info.trace = self._tracing.begin(scope)
        return info

    def _record(self, scope: Scope, route: str, info: RequestInfo, status: int) -> None:
        self.telemetry.count_request(route, status)
        if self._tracing is not None and info.trace is not None:
            self._trace(self._tracing, info.trace, scope["method"], route, info, status)
        if not self._logs:
            return
        log.info(
            "request",
            request_id=info.request_id,
            method=scope["method"],
            route=route,
            status=status,
            ms=round(1000 * (time.perf_counter() - info.started), 3),
            **info.notes,
        )

    @staticmethod
    def _trace(
        tracing: Tracing, trace: Trace, method: str, route: str, info: RequestInfo, status: int
    ) -> None:
        attributes: dict[str, Attribute] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "srp4ctr.request_id": info.request_id,
        }
        attributes |= {f"srp4ctr.{name}": value for name, value in info.notes.items()}
        tracing.end(trace, f"{method} {route}", info.started, attributes, status)
        info.notes |= trace.ids()


def request_id(given: bytes) -> str:
    """A client's own id, where it is sane, or another one."""
    return given.decode() if _SANE.fullmatch(given) else f"{_PROCESS}{next(_NUMBERS):08x}"


def _request_id(scope: Scope) -> str:
    return request_id(next((value for name, value in scope["headers"] if name == HEADER), b""))
