"""A typed client of the service, for ranking systems in Python: `Client`, and `AsyncClient` with the same methods.

    with Client("http://localhost:8000") as client:
        answer = client.score("196", ["242", "302"], deadline_ms=20)

Requests are checked before they are sent, by the types that the service checks them with, and answers are those types.
Scoring changes nothing, and events, impressions and forgetting change nothing the second time, so that a request is sent once more where
no answer came (no connection, or one that was closed) or where the service had too much to do, which another replica may not
have. A request that took too long is not: its time is gone. Whatever cannot be answered is a `ServiceProblem`, and where nobody answers, a `ServiceUnreachable`.
"""

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


def _repeat(tried: int, happened: httpx.Response | httpx.TransportError) -> bool:
    if tried == TRIES:
        return False
    if isinstance(happened, httpx.Response):
        return happened.status_code == OVERLOADED
    return isinstance(happened, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout)


def _options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"base_url": url, "timeout": timeout_s, "headers": headers}


def _unreachable(url: str, error: httpx.TransportError) -> ServiceUnreachable:
    return ServiceUnreachable(f"{url}: {str(error) or type(error).__name__}")


class Client:
    """For threads: one client keeps connections for all of them."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, binary: bool = False
    ) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for one try.

        With `binary`, bodies are MessagePack and not JSON.
        """
        self._url = url
        self._wire = MessagePack() if binary else Json()
        self._http = httpx.Client(**_options(url, api_key, timeout_s))

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
        tried = 0
        while True:
            tried += 1
            try:
                response = self._http.request(call.method, call.path, **call.content(self._wire))
            except httpx.TransportError as error:
                if not _repeat(tried, error):
                    raise _unreachable(self._url, error) from error
            else:
                if not _repeat(tried, response):
                    return call.outcome(response, self._wire)


class AsyncClient:
    """For an event loop: `Client` with coroutines."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, binary: bool = False
    ) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for one try.

        With `binary`, bodies are MessagePack and not JSON.
        """
        self._url = url
        self._wire = MessagePack() if binary else Json()
        self._http = httpx.AsyncClient(**_options(url, api_key, timeout_s))

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
        tried = 0
        while True:
            tried += 1
            try:
                response = await self._http.request(call.method, call.path, **call.content(self._wire))
            except httpx.TransportError as error:
                if not _repeat(tried, error):
                    raise _unreachable(self._url, error) from error
            else:
                if not _repeat(tried, response):
                    return call.outcome(response, self._wire)
