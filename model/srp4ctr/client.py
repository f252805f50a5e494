"""A typed client of the service, for ranking systems in Python: `Client`, and `AsyncClient` with the same methods.

    with Client("http://localhost:8000") as client:
        answer = client.score("196", ["242", "302"], deadline_ms=20)

Requests are checked before they are sent, by the types that the service checks them with, and answers are those types.
Scoring changes nothing, so that a request is sent once more where no answer came (no connection, or one that was closed) or
where the service had too much to do, which another replica may not have. A request that took too long is not: its time is
gone. Whatever cannot be answered is a `ServiceProblem`, and where nobody answers, a `ServiceUnreachable`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ValidationError

from srp4ctr.contract.errors import DependencyMissing, InvalidRequest, Srp4ctrError
from srp4ctr.contract.http_types import (
    BatchRequest,
    BatchResponse,
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

__all__ = ["AsyncClient", "Client", "ServiceProblem", "ServiceUnreachable", "UserRequest"]

TRIES = 2
TIMEOUT_S = 1.0
OVERLOADED = 503
JSON = {"content-type": "application/json"}

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


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request, ready to be sent, and the type of its answer."""

    method: str
    path: str
    body: bytes | None
    answer: type[R]

    def outcome(self, response: httpx.Response) -> R:
        """The answer in a response; raises ServiceProblem and ServiceUnreachable."""
        try:
            if response.is_success:
                return self.answer.model_validate_json(response.content)
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
    return Call("POST", "/score", _body(ScoreRequest, given), ScoreResponse)


def rank_call(user_id: str, item_ids: Sequence[str], fields: RankFields) -> Call[RankResponse]:
    """POST /rank. Raises InvalidRequest."""
    given = {"user_id": user_id, "item_ids": item_ids, **fields}
    return Call("POST", "/rank", _body(RankRequest, given), RankResponse)


def batch_call(requests: Sequence[UserRequest], deadline_ms: float | None) -> Call[BatchResponse]:
    """POST /score/batch. Raises InvalidRequest."""
    given: dict[str, Any] = {"requests": requests}
    if deadline_ms is not None:
        given["deadline_ms"] = deadline_ms
    return Call("POST", "/score/batch", _body(BatchRequest, given), BatchResponse)


MODEL_CALL = Call("GET", "/model", None, ModelInfo)


def _body(kind: type[BaseModel], fields: Mapping[str, Any]) -> bytes:
    try:
        return (
            kind(**{name: _plain(value) for name, value in fields.items()})
            .model_dump_json(exclude_unset=True)
            .encode()
        )
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

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for one try."""
        self._url = url
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

    def model(self) -> ModelInfo:
        """The model that scores, and what it takes."""
        return self._send(MODEL_CALL)

    def _send(self, call: Call[R]) -> R:
        tried = 0
        while True:
            tried += 1
            try:
                response = self._http.request(call.method, call.path, content=call.body, headers=JSON)
            except httpx.TransportError as error:
                if not _repeat(tried, error):
                    raise _unreachable(self._url, error) from error
            else:
                if not _repeat(tried, response):
                    return call.outcome(response)


class AsyncClient:
    """For an event loop: `Client` with coroutines."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for one try."""
        self._url = url
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

    async def model(self) -> ModelInfo:
        """The model that scores, and what it takes."""
        return await self._send(MODEL_CALL)

    async def _send(self, call: Call[R]) -> R:
        tried = 0
        while True:
            tried += 1
            try:
                response = await self._http.request(call.method, call.path, content=call.body, headers=JSON)
            except httpx.TransportError as error:
                if not _repeat(tried, error):
                    raise _unreachable(self._url, error) from error
            else:
                if not _repeat(tried, response):
                    return call.outcome(response)
