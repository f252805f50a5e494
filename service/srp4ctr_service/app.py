"""The app: composed here, and nothing more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from srp4ctr import __version__
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.redis_client import connect_async
from srp4ctr.runtime.state_store import AsyncStateStore
from srp4ctr_service import problems, routes
from srp4ctr_service.openapi import DocumentedApp
from srp4ctr_service.parts import Parts
from srp4ctr_service.request_scope import RequestMiddleware
from srp4ctr_service.scoring import Scoring
from srp4ctr_service.settings import Settings
from srp4ctr_service.states import StateReader
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.versions import Versions


def create_app(settings: Settings, redis_url: str) -> FastAPI:
    """The service's app for the Redis at `redis_url`; opens nothing before it is started."""
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with connect_async(settings, redis_url) as client:
            store = AsyncStateStore(client, Keys(settings.namespace))
            versions = Versions(settings, store, telemetry)
            scoring = Scoring(settings, versions, StateReader(settings, store), telemetry)
            app.state.parts = Parts(settings, redis_url, telemetry, store, versions, scoring)
            try:
                async with versions.followed():
                    yield
            finally:
                scoring.close()

    app = DocumentedApp(
        title="srp4ctr",
        version=__version__,
        summary="Calibrated click probabilities of candidates, from cached user states",
        lifespan=lifespan,
    )
    routes.install(app)
    problems.install(app, telemetry)
    app.add_middleware(RequestMiddleware, telemetry=telemetry, problem=problems.answer)
    return app
