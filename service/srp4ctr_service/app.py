"""The app: composed here, and nothing more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from fastapi import FastAPI
from starlette.types import Lifespan

from srp4ctr import __version__
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.async_state_store import AsyncStateStore
from srp4ctr.runtime.event_store import AsyncEventStore
from srp4ctr.runtime.feedback_store import AsyncFeedbackStore
from srp4ctr.runtime.near_cache import NearCache
from srp4ctr.runtime.redis_client import connect_async, read_pool
from srp4ctr.runtime.state_reads import Limits, StateReads
from srp4ctr_service import problems, routes
from srp4ctr_service.compute import Compute
from srp4ctr_service.door import Door
from srp4ctr_service.events import Events
from srp4ctr_service.keys import ApiKeys
from srp4ctr_service.monitored import Monitored
from srp4ctr_service.openapi import DocumentedApp
from srp4ctr_service.parts import Parts
from srp4ctr_service.recorder import Recorder
from srp4ctr_service.request_scope import RequestScope
from srp4ctr_service.scoring import Scoring
from srp4ctr_service.settings import Settings
from srp4ctr_service.states import StateReader
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.tracing import Tracing
from srp4ctr_service.versions import Versions
from srp4ctr_service.warm_up import check


def create_app(settings: Settings, redis_url: str) -> RequestScope:
    """The service's app for the Redis at `redis_url`; before it is started, it looks at the files that settings
    name, and at nothing else.

    Raises ConfigError where there are no API keys or no records in them, records cannot be written, or what sends traces is missing.
    """
    telemetry = Telemetry()
    recorder = Recorder.configured(settings, telemetry)
    tracing = Tracing.configured(settings)
    if settings.warmup_file is not None:
        check(settings.warmup_file)
    compute = Compute(settings.max_waiting_candidates)
    door = Door(compute, settings.deadline_ms)
    running: list[Parts] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keys = Keys(settings.namespace)
        limits = Limits(
            read_s=settings.redis_score_timeout_ms / 1000,
            connect_s=settings.redis_connect_timeout_ms / 1000,
            probe_every_s=settings.redis_probe_every_ms / 1000,
        )
        cache = NearCache(settings.near_cache_users, settings.near_cache_s)
        pool = read_pool(settings, redis_url)
        reads = StateReads(pool, limits, cache, keys.forgets(), telemetry.count_near_cache)
        async with connect_async(settings, redis_url) as client:
            store = AsyncStateStore(client, keys)
            versions = Versions(settings, store, telemetry)
            states = StateReader(settings, reads, keys)
            monitored = Monitored(
                settings, AsyncFeedbackStore(client, keys, settings.monitored_max_mb * 1_000_000), telemetry
            )
            scoring = Scoring(settings, versions, states, compute, door, telemetry, monitored, recorder)
            event_store = AsyncEventStore(client, keys, settings.retention)
            events = Events(settings, versions, event_store, states, telemetry)
            app.state.parts = Parts(
                settings, redis_url, telemetry, store, versions, scoring, events, monitored
            )
            running.append(app.state.parts)
            try:
                recorded = nullcontext() if recorder is None else recorder.written()
                traced = nullcontext() if tracing is None else tracing.sent()
                async with (
                    versions.followed(),
                    telemetry.flushed(),
                    monitored.written(),
                    door.told(),
                    recorded,
                    traced,
                ):
                    yield
            finally:
                running.clear()
                await reads.close()

    app = document_app(lifespan)
    problems.install(app, telemetry)
    keys = None if settings.api_keys_file is None else ApiKeys(settings.api_keys_file)
    shortcuts = routes.shortcuts(lambda: running[0], door)
    return RequestScope(app, telemetry, problems.answer, shortcuts, keys, door, tracing)


def document_app(lifespan: Lifespan[FastAPI] | None = None) -> DocumentedApp:
    """The framework's app: all paths and their document."""
    app = DocumentedApp(
        title="srp4ctr",
        version=__version__,
        summary="Calibrated click probabilities of candidates, from cached user states",
        lifespan=lifespan,
    )
    routes.install(app)
    return app
