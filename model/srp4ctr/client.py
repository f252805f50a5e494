"""A typed client of the service, for ranking systems in Python: `Client`, and `AsyncClient` with the same methods.

    with Client("http://localhost:8000") as client:
        answer = client.score("196", ["242", "302"], deadline_ms=20)

Requests are checked before they are sent, by the types that the service checks them with, and answers are those types.
Scoring changes nothing, and events, impressions and forgetting change nothing the second time, so that a request is sent once more where
no answer came (no connection, or one that was closed), and where the service had too much to do when it says that it may have less, if
there is time until then: within the client's `timeout_s` and the request's own `deadline_ms`. A request that took too long is not sent
again: its time is gone. Whatever cannot be answered is a `ServiceProblem`, and where nobody answers, a `ServiceUnreachable`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from srp4ctr.contract.errors import DependencyMissing, InvalidRequest, Srp4ctrError
from srp4ctr.contract.http_types import (
    BatchRequest,
    BatchResponse,
    Event,
    EventsRequest,
    EventsResponse,
    Forgotten,
    Impression,
    ImpressionsRequest,
    ImpressionsResponse,
    ModelInfo,
    Problem,
    RankRequest,
    RankResponse,
    Scalar,
    ScoreRequest,
    ScoreResponse,
    UserRequest,
)

try:
    import httpx
except ImportError as error:
    raise DependencyMissing("httpx", "client") from error

__all__ = ["AsyncClient", "Client", "Event", "ServiceProblem", "ServiceUnreachable", "UserRequest"]

TRIES = 2
TIMEOUT_S = 1.0
SHORTEST_S = 0.001
OVERLOADED = 503

R = TypeVar("R", bound=BaseModel)
Attributes = Mapping[str, Scalar | list[Scalar]]


class ServiceProblem(Srp4ctrError):  # noqa: N818
    """The service answered with a problem; `problem` has all of it, the request id among it."""

    def __init__(self, problem: Problem) -> None:
        wrong = "; ".join(f"{one.field}: {one.message}" for one in problem.errors)
        super().__init__(
            f"{problem.status} {problem.title}: {wrong or problem.detail} ({problem.request_id})"
        )
        self.problem = problem


class ServiceUnreachable(Srp4ctrError):  # noqa: N818
    """Nobody answered, or not in time, or not as this service does."""


class Json:
    """Bodies as JSON."""

    headers: ClassVar = {"content-type": "application/json"}

    def write(self, request: BaseModel) -> bytes:
        """A request's body."""
        return request.model_dump_json(exclude_unset=True).encode()

    def read(self, kind: type[R], body: bytes) -> R:
        """An answer's body."""
        return kind.model_validate_json(body)


class MessagePack(Json):
    """Bodies as MessagePack: half as large, and numbers need not be read as text."""

    headers: ClassVar = {"content-type": "application/msgpack"}

    def __init__(self) -> None:
        try:
            import ormsgpack
        except ImportError as error:
            raise DependencyMissing("ormsgpack", "client-binary") from error
        self._codec = ormsgpack

    def write(self, request: BaseModel) -> bytes:
        """A request's body."""
        return self._codec.packb(request.model_dump(exclude_unset=True))

    def read(self, kind: type[R], body: bytes) -> R:
        """An answer's body."""
        try:
            return kind.model_validate(self._codec.unpackb(body))
        except self._codec.MsgpackDecodeError:
            # As any other answer that is none of this service.
            return kind.model_validate_json(body)


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request, checked, and the type of its answer."""

    method: str
    path: str
    request: BaseModel | None
    answer: type[R]

    def content(self, wire: Json) -> dict[str, Any]:
        """What is sent, for httpx."""
        return {} if self.request is None else {"content": wire.write(self.request), "headers": wire.headers}

    def outcome(self, response: httpx.Response, wire: Json) -> R:
        """The answer in a response; raises ServiceProblem and ServiceUnreachable."""
        try:
            if response.is_success:
                return (wire if self.request else Json()).read(self.answer, response.content)
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            raise ServiceUnreachable(
                f"{response.url} answered {response.status_code}, and not as this service does"
            ) from None
        raise ServiceProblem(problem)


class ScoreFields(TypedDict, total=False):
    """What a request to score may say besides user and candidates: see ScoreRequest."""

    context: Mapping[str, Scalar]
    candidate_features: Mapping[str, Sequence[Scalar]]
    items: Mapping[str, Attributes]
    user_features: Mapping[str, Scalar]
    deadline_ms: float


class RankFields(ScoreFields, total=False):
    """What a request to rank may say besides user and candidates: see RankRequest."""

    top_k: int


def score_call(user_id: str, item_ids: Sequence[str], fields: ScoreFields) -> Call[ScoreResponse]:
    """POST /score. Raises InvalidRequest."""
    given = {"user_id": user_id, "item_ids": item_ids, **fields}
    return Call("POST", "/score", _checked(ScoreRequest, given), ScoreResponse)


def rank_call(user_id: str, item_ids: Sequence[str], fields: RankFields) -> Call[RankResponse]:
    """POST /rank. Raises InvalidRequest."""
    given = {"user_id": user_id, "item_ids": item_ids, **fields}
    return Call("POST", "/rank", _checked(RankRequest, given), RankResponse)


def batch_call(requests: Sequence[UserRequest], deadline_ms: float | None) -> Call[BatchResponse]:
    """POST /score/batch. Raises InvalidRequest."""
    given: dict[str, Any] = {"requests": requests}
    if deadline_ms is not None:
        given["deadline_ms"] = deadline_ms
    return Call("POST", "/score/batch", _checked(BatchRequest, given), BatchResponse)


def events_call(events: Sequence[Event]) -> Call[EventsResponse]:
    """POST /events. Raises InvalidRequest."""
    return Call("POST", "/events", _checked(EventsRequest, {"events": events}), EventsResponse)


def impressions_call(impressions: Sequence[Impression]) -> Call[ImpressionsResponse]:
    """POST /impressions. Raises InvalidRequest."""
    request = _checked(ImpressionsRequest, {"impressions": impressions})
    return Call("POST", "/impressions", request, ImpressionsResponse)


def forget_call(user_id: str) -> Call[Forgotten]:
    """DELETE /users."""
    return Call("DELETE", f"/users/{quote(user_id, safe='')}", None, Forgotten)


MODEL_CALL = Call("GET", "/model", None, ModelInfo)


def _checked(kind: type[BaseModel], fields: Mapping[str, Any]) -> BaseModel:
    try:
        return kind(**{name: _plain(value) for name, value in fields.items()})
    except ValidationError as error:
        first, *others = [
            (".".join(map(str, one["loc"])) or "request", one["msg"])
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidRequest(*first, *others) from None


def _plain(value: object) -> object:
    """Any mapping as a dict and any sequence as a list, which is what the types of requests take."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value


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


def _options(url: str, api_key: str | None) -> dict[str, Any]:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"base_url": url, "headers": headers}


def _unreachable(url: str, error: httpx.TransportError) -> ServiceUnreachable:
    return ServiceUnreachable(f"{url}: {str(error) or type(error).__name__}")


class Client:
    """For threads: one client keeps connections for all of them."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, binary: bool = False
    ) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for an answer, all tries together.

        With `binary`, bodies are MessagePack and not JSON.
        """
        self._url = url
        self._wire = MessagePack() if binary else Json()
        self._timeout_s = timeout_s
        self._http = httpx.Client(**_options(url, api_key))

    def __enter__(self) -> Self:
        """The client; leaving closes its connections."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def score(self, user_id: str, item_ids: Sequence[str], **fields: Unpack[ScoreFields]) -> ScoreResponse:
        """Click probabilities of candidates, aligned with `item_ids`."""
        return self._send(score_call(user_id, item_ids, fields))

    def rank(self, user_id: str, item_ids: Sequence[str], **fields: Unpack[RankFields]) -> RankResponse:
        """The candidates, the likeliest click first."""
        return self._send(rank_call(user_id, item_ids, fields))

    def batch(self, requests: Sequence[UserRequest], *, deadline_ms: float | None = None) -> BatchResponse:
        """Click probabilities for several users, all by one model version."""
        return self._send(batch_call(requests, deadline_ms))

    def events(self, events: Sequence[Event]) -> EventsResponse:
        """Tell what users did; returns when the service has it."""
        return self._send(events_call(events))

    def impressions(self, impressions: Sequence[Impression]) -> ImpressionsResponse:
        """Tell what users were shown of answers; returns when the service has it."""
        return self._send(impressions_call(impressions))

    def forget(self, user_id: str) -> Forgotten:
        """Have all removed that the service's Redis has of a user."""
        return self._send(forget_call(user_id))

    def model(self) -> ModelInfo:
        """The model that scores, and what it takes."""
        return self._send(MODEL_CALL)

    def _send(self, call: Call[R]) -> R:
        tries, content = Tries(call.request, self._timeout_s), call.content(self._wire)
        while True:
            try:
                response = self._http.request(call.method, call.path, timeout=tries.wait_s(), **content)
            except httpx.TransportError as error:
                pause_s = tries.pause_s(error)
                if pause_s is None:
                    raise _unreachable(self._url, error) from error
            else:
                pause_s = tries.pause_s(response)
                if pause_s is None:
                    return call.outcome(response, self._wire)
            time.sleep(pause_s)


class AsyncClient:
    """For an event loop: `Client` with coroutines."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, binary: bool = False
    ) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for an answer, all tries together.

        With `binary`, bodies are MessagePack and not JSON.
        """
        self._url = url
        self._wire = MessagePack() if binary else Json()
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(**_options(url, api_key))

    async def __aenter__(self) -> Self:
        """The client; leaving closes its connections."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def score(
        self, user_id: str, item_ids: Sequence[str], **fields: Unpack[ScoreFields]
    ) -> ScoreResponse:
        """Click probabilities of candidates, aligned with `item_ids`."""
        return await self._send(score_call(user_id, item_ids, fields))

    async def rank(self, user_id: str, item_ids: Sequence[str], **fields: Unpack[RankFields]) -> RankResponse:
        """The candidates, the likeliest click first."""
        return await self._send(rank_call(user_id, item_ids, fields))

    async def batch(
        self, requests: Sequence[UserRequest], *, deadline_ms: float | None = None
    ) -> BatchResponse:
        """Click probabilities for several users, all by one model version."""
        return await self._send(batch_call(requests, deadline_ms))

    async def events(self, events: Sequence[Event]) -> EventsResponse:
        """Tell what users did; returns when the service has it."""
        return await self._send(events_call(events))

    async def impressions(self, impressions: Sequence[Impression]) -> ImpressionsResponse:
        """Tell what users were shown of answers; returns when the service has it."""
        return await self._send(impressions_call(impressions))

    async def forget(self, user_id: str) -> Forgotten:
        """Have all removed that the service's Redis has of a user."""
        return await self._send(forget_call(user_id))

    async def model(self) -> ModelInfo:
        """The model that scores, and what it takes."""
        return await self._send(MODEL_CALL)

    async def _send(self, call: Call[R]) -> R:
        tries, content = Tries(call.request, self._timeout_s), call.content(self._wire)
        while True:
            try:
                response = await self._http.request(call.method, call.path, timeout=tries.wait_s(), **content)
            except httpx.TransportError as error:
                pause_s = tries.pause_s(error)
                if pause_s is None:
                    raise _unreachable(self._url, error) from error
            else:
                pause_s = tries.pause_s(response)
                if pause_s is None:
                    return call.outcome(response, self._wire)
            await asyncio.sleep(pause_s)
