"""Errors as RFC 9457 problem+json: the one place where an exception becomes an HTTP answer."""

import math
from typing import NamedTuple

import orjson
import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from srp4ctr.contract.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineMissed,
    InvalidRequest,
    MalformedBody,
    NoActiveModel,
    NotAuthorized,
    Overloaded,
    StoreError,
    StoreUnavailable,
)
from srp4ctr.contract.http_types import FieldError, Problem
from srp4ctr_service.request_scope import RequestInfo
from srp4ctr_service.telemetry import Telemetry

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class Kind(NamedTuple):
    """A problem's stable name, the last part of its `type`, with its status and title."""

    name: str
    status: int
    title: str


INTERNAL = Kind("internal", 500, "The service failed")
HTTP = Kind("http", 400, "The request cannot be served")
OVERLOADED = Kind("overloaded", 503, "The service has more to do than it can")
TOO_MANY_CONNECTIONS = Kind("too-many-connections", 503, "Too many connections are open")
BY_STATUS = {
    404: Kind("not-found", 404, "There is no such path"),
    405: Kind("method-not-allowed", 405, "The path does not take this method"),
}
# The first that fits decides, so the more special come first.
BY_ERROR: tuple[tuple[type[Exception], Kind], ...] = (
    (MalformedBody, Kind("malformed-body", 400, "The body is neither JSON nor MessagePack")),
    (BodyTooLarge, Kind("body-too-large", 413, "The body is too large")),
    (BodyTimeout, Kind("request-timeout", 408, "The request did not arrive in time")),
    (InvalidRequest, Kind("invalid-request", 422, "The request does not fit the interface or the model")),
    (NotAuthorized, Kind("not-authorized", 401, "The request has no valid API key")),
    (Overloaded, OVERLOADED),
    (DeadlineMissed, Kind("deadline-missed", 504, "The deadline passed before there was any answer")),
    (NoActiveModel, Kind("no-active-model", 503, "There is no model to score with, yet")),
    (StoreUnavailable, Kind("store-unavailable", 503, "Redis did not do what the request needs")),
    (StoreError, Kind("store-damaged", 503, "What Redis holds cannot be used")),
    (ClientDisconnect, Kind("client-gone", 400, "The client left before its body had arrived")),
)
KINDS = (INTERNAL, HTTP, TOO_MANY_CONNECTIONS, *BY_STATUS.values(), *(kind for _, kind in BY_ERROR))
"""Every kind of problem that the service answers with."""


def answer(error: Exception, info: RequestInfo, telemetry: Telemetry) -> Response:
    """The problem for an error, counted; an error that nobody foresaw is logged with its traceback."""
    kind, headers = _kind(error)
    problem = Problem(
        type=f"/problems/{kind.name}",
        title=kind.title,
        status=kind.status,
        detail="it is logged under the request id" if kind is INTERNAL else _detail(error),
        request_id=info.request_id,
        errors=[FieldError(field=field, message=message) for field, message in _errors(error)],
    )
    if kind is INTERNAL:
        log.error("unforeseen_error", request_id=info.request_id, exc_info=error)
    if isinstance(error, NoActiveModel | StoreError):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, NotAuthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(retry_after(error.retry_after_s))
    info.notes["problem"] = kind.name
    telemetry.count_problem(kind.name)
    return Response(orjson.dumps(problem.model_dump()), kind.status, headers, media_type=MEDIA_TYPE)


def retry_after(wait_s: float) -> int:
    """The header's value, which counts in whole seconds."""
    return max(1, math.ceil(wait_s))


def install(app: FastAPI, telemetry: Telemetry) -> None:
    """Have the app answer 404, 405 and their like here; every other error reaches the request middleware."""

    async def handle(request: Request, error: Exception) -> Response:
        return answer(error, RequestInfo.of(request), telemetry)

    app.add_exception_handler(HTTPException, handle)


def _kind(error: Exception) -> tuple[Kind, dict[str, str]]:
    if isinstance(error, HTTPException):
        kind = BY_STATUS.get(error.status_code, HTTP._replace(status=error.status_code))
        return kind, dict(error.headers or {})
    return next((kind for of, kind in BY_ERROR if isinstance(error, of)), INTERNAL), {}


def _detail(error: Exception) -> str:
    return str(error.detail if isinstance(error, HTTPException) else error) or type(error).__name__


def _errors(error: Exception) -> tuple[tuple[str, str], ...]:
    return error.errors if isinstance(error, InvalidRequest) else ()
