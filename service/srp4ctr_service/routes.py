"""The HTTP paths."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from srp4ctr.contract.errors import InvalidRequest, NoActiveModel, StoreUnavailable
from srp4ctr.contract.http_types import (
    MAX_EVENTS,
    MAX_ID_LENGTH,
    MAX_USERS,
    BatchRequest,
    BatchResponse,
    BehaviourFeature,
    ContextFeature,
    Dependency,
    EventsRequest,
    EventsResponse,
    Forgotten,
    ImpressionsRequest,
    ImpressionsResponse,
    Limits,
    ModelInfo,
    RankRequest,
    RankResponse,
    Readiness,
    ScoreRequest,
    ScoreResponse,
)
from srp4ctr.contract.transforms import BEHAVIOUR, CONTEXT
from srp4ctr.runtime.redis_client import shown
from srp4ctr_service.bodies import Held, R, parse, read_body
from srp4ctr_service.door import Door
from srp4ctr_service.formats import format_of
from srp4ctr_service.openapi import BINARY, answers, takes
from srp4ctr_service.parts import Parts
from srp4ctr_service.request_scope import RequestInfo, Shortcut
from srp4ctr_service.routing import PlainRoute

_SHORTCUT = "the request scope answers POST requests of this path itself"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def score(request: Request) -> Response:  # noqa: ARG001 -- it is there for the document
    """Score candidates for one user: calibrated click probabilities, aligned with `item_ids`.

    Unknown users and items are scored, and flagged. While Redis is away, users are scored by what was last known of
    them, or as cold ones, and `degraded` says so.
    """
    raise AssertionError(_SHORTCUT)


async def rank(request: Request) -> Response:  # noqa: ARG001
    """Score candidates for one user, and give the best of them, the likeliest click first."""
    raise AssertionError(_SHORTCUT)


async def batch(request: Request) -> Response:  # noqa: ARG001
    """Score candidates for several users, all by one model version."""
    raise AssertionError(_SHORTCUT)


async def events(request: Request) -> Response:  # noqa: ARG001
    """Tell what users did. Answered when Redis has all of it; the users' states follow within a second, by `srp4ctr refresh`.

    Events are in the order of their times, whenever they are sent, and one that is sent again counts once. Where the answer is
    503, some may be stored: send them all again.
    """
    raise AssertionError(_SHORTCUT)


async def impressions(request: Request) -> Response:  # noqa: ARG001
    """Tell what users were shown of answers. `srp4ctr monitor` joins it with the events that follow, and measures the model.

    Only impressions of answers that are monitored are kept; the others may be sent all the same.
    """
    raise AssertionError(_SHORTCUT)


async def forget(request: Request) -> Response:
    """Remove all that Redis has of a user: the states of all versions, the history, and the events that still wait.

    The tables that the next version is made of, and requests that were recorded, are the caller's business.
    """
    user_id = request.path_params["user_id"]
    if len(user_id) > MAX_ID_LENGTH or "\0" in user_id:
        raise InvalidRequest("user_id", f"has up to {MAX_ID_LENGTH} characters, and no NUL")
    removed = await Parts.of(request).events.forget(user_id)
    return _json(Forgotten(request_id=RequestInfo.of(request).request_id, removed=removed))


def shortcuts(parts: Callable[[], Parts], door: Door) -> dict[str, Shortcut]:
    """What answers the paths that are asked for most, by path, from the parts of the running app; `door` is that to the model."""

    held = Held()

    def shortcut(
        kind: type[R], answer: Callable[[Parts, R, RequestInfo], Awaitable[bytes]], door: Door | None = None
    ) -> Shortcut:
        async def serve(scope: Scope, receive: Receive, info: RequestInfo) -> bytes:
            of = parts()
            body = await read_body(scope, receive, of.settings, held)
            if door is not None:
                door.check(body)
            info.body_bytes = len(body)
            info.format = format_of(scope)
            return await answer(of, parse(kind, body, info.format, of.settings), info)

        return serve

    return {
        "/score": shortcut(ScoreRequest, lambda of, *asked: of.scoring.score(*asked), door),
        "/rank": shortcut(RankRequest, lambda of, *asked: of.scoring.rank(*asked), door),
        "/score/batch": shortcut(BatchRequest, lambda of, *asked: of.scoring.batch(*asked), door),
        "/impressions": shortcut(ImpressionsRequest, lambda of, *asked: of.monitored.shown(*asked)),
        "/events": shortcut(EventsRequest, lambda of, *asked: of.events.record(*asked)),
    }


async def model(request: Request) -> Response:
    """The model that scores now: its version, the context features it takes, its measured quality."""
    parts = Parts.of(request)
    bundle = parts.versions.current().bundle
    manifest = bundle.manifest
    info = ModelInfo(
        version=manifest.version,
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        created_at=manifest.created_at,
        items=len(bundle.items.codes) - 1,
        items_revision=parts.versions.current().revision,
        state=manifest.state.kind,
        context_features=[
            ContextFeature.model_validate(
                {"name": feature.name, "type": feature.type, "reference": feature.reference}
            )
            for feature in bundle.transforms.features(CONTEXT)
        ],
        behaviour_features=[
            BehaviourFeature.model_validate({"name": feature.name, "type": feature.type})
            for feature in bundle.transforms.features(BEHAVIOUR)
        ],
        limits=Limits(
            max_candidates=parts.settings.max_candidates,
            max_batch_users=MAX_USERS,
            max_batch_candidates=parts.settings.max_batch_candidates,
            max_inline_items=parts.settings.max_inline_items,
            max_body_bytes=parts.settings.max_body_bytes,
            max_events=MAX_EVENTS,
            max_id_length=MAX_ID_LENGTH,
            default_deadline_ms=parts.settings.deadline_ms,
        ),
        metrics=manifest.metrics,
    )
    return _json(info)


async def livez(request: Request) -> Response:  # noqa: ARG001 -- every route takes the request
    """Whether the process answers at all."""
    return _json(b'{"live":true}')


async def readyz(request: Request) -> Response:
    """Whether requests can be answered: 200 once a model is loaded, with each dependency by name."""
    parts = Parts.of(request)
    where = shown(parts.redis_url)
    try:
        await parts.store.ping(parts.settings.redis_connect_timeout_ms / 1000)
        redis = Dependency(status="ok", detail=where)
    except StoreUnavailable as error:
        redis = Dependency(status="degraded", detail=f"{where}: {error}")
    try:
        loaded = Dependency(status="ok", detail=parts.versions.current().version)
        if parts.versions.trouble is not None:
            loaded = Dependency(status="degraded", detail=f"{loaded.detail}; {parts.versions.trouble}")
        ready = True
    except NoActiveModel as error:
        loaded = Dependency(status="missing", detail=str(error))
        ready = False
    readiness = Readiness(ready=ready, dependencies={"model": loaded, "redis": redis})
    return _json(readiness, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(Parts.of(request).telemetry.text(), media_type=METRICS_TYPE)


def install(app: FastAPI) -> None:
    """Add all paths to the app."""
    app.router.route_class = PlainRoute
    add = app.router.add_api_route
    problems = (400, 401, 408, 413, 422, 500, 503, 504)
    ready = answers(Readiness)
    ready[503] = ready[200] | {"description": "Not ready"}
    for path, endpoint, taken, given in (
        ("/score", score, ScoreRequest, ScoreResponse),
        ("/rank", rank, RankRequest, RankResponse),
        ("/score/batch", batch, BatchRequest, BatchResponse),
        ("/events", events, EventsRequest, EventsResponse),
        ("/impressions", impressions, ImpressionsRequest, ImpressionsResponse),
    ):
        responses = answers(given, ("application/json", BINARY), problems)
        add(path, endpoint, methods=["POST"], responses=responses, openapi_extra=takes(taken))
    forgetting = answers(Forgotten, problems=(401, 422, 503))
    add("/users/{user_id:path}", forget, methods=["DELETE"], responses=forgetting)
    add("/model", model, methods=["GET"], responses=answers(ModelInfo, problems=(401, 503)))
    add("/livez", livez, methods=["GET"])
    add("/readyz", readyz, methods=["GET"], responses=ready)
    add("/metrics", metrics, methods=["GET"], responses=answers(media_types=("text/plain",), problems=(401,)))


def _json(body: bytes | BaseModel, status: int = 200) -> Response:
    content = body if isinstance(body, bytes) else body.model_dump_json()
    return Response(content, status, media_type="application/json")
