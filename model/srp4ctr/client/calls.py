"""What a client may ask: each request checked by the service's own types, its body, and what its answer means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from srp4ctr.contract.errors import DependencyMissing, Srp4ctrError
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
from srp4ctr.contract.wrong_fields import invalid_request

try:
    import httpx
except ImportError as error:
    raise DependencyMissing("httpx", "client") from error

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
        raise invalid_request(error) from None


def _plain(value: object) -> object:
    """Any mapping as a dict and any sequence as a list, which is what the types of requests take."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value
