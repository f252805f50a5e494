"""Bodies of the HTTP interface. Columnar: scores are aligned with item_ids, nothing is repeated per candidate."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from pydantic import BaseModel, ConfigDict, FailFast, Field, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, core_schema

from srp4ctr.contract.events import EVENT_ID

MAX_ID_LENGTH = 256
MAX_USERS = 256
"""Of one batch."""
MAX_EVENTS = 1000
"""Of one request."""
MAX_CANDIDATES = 10_000
"""What the wire format allows; a service's own limit is a setting, and lower."""

Id = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_ID_LENGTH)]
"""Without NUL, too, which is looked for in all ids of a request at once."""

MAX_FEATURES = 256
"""Of one thing."""
MAX_VALUES = 256
"""Of a multi-valued attribute."""
NOT_A_VALUE = "must be a string, a finite number, a boolean or null"


@dataclass(frozen=True)
class _OneError:
    """One error for a wrong value, not one for each type that it is not: a body of a million wrong values is refused as soon as others."""

    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(handler(source), "value", custom_error_message=self.message)


Scalar = Annotated[str | int | float | bool | None, _OneError(NOT_A_VALUE)]
_List = Annotated[list[str | int | float | bool | None], MaxLen(MAX_VALUES)]
Values = Annotated[
    str | int | float | bool | _List | None,
    _OneError(f"{NOT_A_VALUE}, or a list of up to {MAX_VALUES} of them"),
]
"""Of a multi-valued attribute a list."""
Features = Annotated[dict[str, Scalar], MaxLen(MAX_FEATURES)]

StateStatus = Literal["fresh", "stale", "cold", "missing"]
Tier = Literal["full", "prior"]
Degradation = Literal["redis_unavailable", "state_corrupt", "state_foreign", "deadline", "overload"]


class Body(BaseModel):
    """A request body: JSON types are taken as they are, and an unknown field is an error."""

    # Ids are too many for pydantic's cache of strings, which would merely be one more table to be out of the CPU's cache.
    # No NaN and no infinity: JSON has none, and a client would send null, another value, in their place. Whatever a part of a
    # request was made of, it may have been changed since.
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        cache_strings="keys",
        allow_inf_nan=False,
        revalidate_instances="always",
    )


class UserRequest(Body):
    """One user, and the candidates to score."""

    user_id: Id = Field(description="the user; one that was never seen is scored as a cold user")
    item_ids: Annotated[list[Id], FailFast()] = Field(
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="the candidates, in the order of the answer's scores",
    )
    context: Features = Field(
        default_factory=dict, description="context features by name; GET /model lists them"
    )
    candidate_features: dict[str, Annotated[list[Scalar], FailFast(), MaxLen(MAX_CANDIDATES)]] = Field(
        default_factory=dict,
        max_length=MAX_FEATURES,
        description="context features that differ between candidates, by name: as many values as item_ids, in their "
        "order. The same feature is not in `context`, too",
    )
    items: dict[Id, Annotated[dict[str, Values], MaxLen(MAX_FEATURES)]] = Field(
        default_factory=dict,
        description="attributes of items by id: those of new ones, which the catalogue lacks, and of others instead of "
        "what the catalogue has",
    )
    user_features: Features = Field(
        default_factory=dict,
        description="features of the user that are other than when the user's state was encoded",
    )


class Timed(Body):
    """A request whose answer has its time."""

    deadline_ms: float | None = Field(
        default=None,
        gt=0,
        le=60_000,
        description="time for the whole answer, milliseconds",
    )


class ScoreRequest(UserRequest, Timed):
    """Score candidates for one user."""


class RankRequest(ScoreRequest):
    """Sort candidates for one user."""

    top_k: int | None = Field(
        default=None, ge=1, le=MAX_CANDIDATES, description="best candidates to give; all where it is null"
    )


class BatchRequest(Timed):
    """Score candidates for several users."""

    requests: list[UserRequest] = Field(
        min_length=1, max_length=MAX_USERS, description="the users, each with candidates of their own"
    )


class Event(Body):
    """Something that a user did."""

    user_id: Id
    item_id: Id
    event_id: Annotated[str, StringConstraints(strict=True, pattern=f"^{EVENT_ID}$")] = Field(
        description="unlike that of any other of the user's events; one that is sent again counts once. Letters, digits and "
        "._:- only"
    )
    timestamp_ms: int = Field(
        ge=1,
        description="when it happened, Unix milliseconds: it decides the event's place in the user's history. A little ahead "
        "of the service's clock at most; one that is older than all of a full history is not stored",
    )
    features: Features = Field(
        default_factory=dict, description="behaviour features by name, as the model's schema has them"
    )


class EventsRequest(Body):
    """What users did, since it was last told."""

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS, description="in any order")


class EventsResponse(BaseModel):
    """Redis has all of these events; users' states follow."""

    request_id: str
    stored: int = Field(description="events that are new")
    duplicates: list[int] = Field(description="places in `events` of those that were stored before")
    too_old: list[int] = Field(
        description="places of those that are older than all that is kept of their user, and were not stored"
    )


class Impression(Body):
    """What a user was shown of an answer."""

    request_id: Id = Field(description="the answer's")
    user_id: Id
    item_ids: Annotated[list[Id], FailFast()] = Field(
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="those of the answer's candidates that were shown",
    )
    timestamp_ms: int = Field(
        ge=1,
        description="when they were shown, Unix milliseconds, by the clock that events have their times from; a little ahead of the "
        "service's clock at most",
    )


class ImpressionsRequest(Body):
    """What users were shown."""

    impressions: list[Impression] = Field(min_length=1, max_length=MAX_EVENTS, description="in any order")


class ImpressionsResponse(BaseModel):
    """Those whose answers are monitored are kept, to be joined with what users click."""

    request_id: str
    monitored: int = Field(description="impressions whose answers are of the share that is monitored")


class Forgotten(BaseModel):
    """Redis has nothing of the user any more."""

    request_id: str
    removed: int = Field(description="states, histories and waiting events that were removed")


class UserStateInfo(BaseModel):
    """What was known of the user; `tier` tells whether the scores come from it."""

    status: StateStatus = Field(
        description="fresh: the user's state was read, with all acknowledged events in it. stale: so was one that lacks some, "
        "or is older than the service's limit. cold: the user has no state, or one without events. "
        "missing: there may be a state, but it could not be read in time or is not valid"
    )
    age_ms: int | None = Field(description="since the state was encoded; null where none was read")
    events_behind: int | None = Field(
        description="acknowledged events that the state lacks; null where that is not known"
    )


class HowScored(BaseModel):
    """How the scores of one user came about."""

    user_state: UserStateInfo
    tier: Tier = Field(
        description="full: the model's, from that user state or, where there is none, the cold one. "
        "prior: the items' own click rates, the user not considered"
    )
    degraded: list[Degradation] = Field(description="why the answer is not all that it could be")
    unknown_items: list[int] = Field(
        description="places in the request's item_ids of items of which neither the catalogue nor the request knows anything"
    )


class Scores(HowScored):
    """Calibrated click probabilities for one user."""

    scores: list[float] = Field(description="aligned with item_ids")


class Identified(BaseModel):
    """What every answer begins with."""

    request_id: str
    model_version: str
    items_revision: str | None = Field(
        description="revision of the version's item table; null for the table that it was exported with"
    )


class ScoreResponse(Identified, Scores):
    """Calibrated click probabilities."""


class RankResponse(Identified, HowScored):
    """The best candidates, the likeliest click first; equal ones in the order of the request."""

    item_ids: list[str]
    scores: list[float] = Field(description="aligned with this answer's item_ids")


class BatchResponse(Identified):
    """Calibrated click probabilities, all of one model version."""

    answers: list[Scores] = Field(description="in the order of the requests")


class FieldError(BaseModel):
    """One thing that is wrong in a request."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 problem+json."""

    type: str = Field(description="stable: /problems/<kind>")
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError] = Field(default_factory=list)


class ContextFeature(BaseModel):
    """A feature of the model's context: a request's `context` may have it, unless it has a reference."""

    name: str
    type: Literal["categorical", "numeric"]
    reference: str | int | bool | float | None = Field(
        description="where it is not null, the feature is held at this value, and a request must not give it"
    )


class BehaviourFeature(BaseModel):
    """A feature of events: an event's `features` may have it."""

    name: str
    type: Literal["categorical", "numeric"]


class Limits(BaseModel):
    """What a request may ask of this service."""

    max_candidates: int
    max_batch_users: int
    max_batch_candidates: int
    max_inline_items: int
    max_body_bytes: int
    max_events: int
    max_id_length: int
    default_deadline_ms: float


class ModelInfo(BaseModel):
    """The model that scores, and what it takes."""

    version: str
    name: str
    fingerprint: str
    created_at: str
    items: int = Field(description="items in the catalogue")
    items_revision: str | None = Field(
        description="revision of the item table; null for the table that the version was exported with"
    )
    state: Literal["tokens", "sequence"] = Field(description="kind of the cached user state")
    context_features: list[ContextFeature]
    behaviour_features: list[BehaviourFeature]
    limits: Limits
    metrics: dict[str, float] = Field(description="of the evaluation before the export")


class Dependency(BaseModel):
    """One thing that the service needs."""

    status: Literal["ok", "degraded", "missing"] = Field(
        description="degraded: scoring goes on without it. missing: nothing can be scored"
    )
    detail: str


class Readiness(BaseModel):
    """Whether requests can be answered, and each dependency by name."""

    ready: bool
    dependencies: dict[Literal["model", "redis"], Dependency]
