"""What a running service consists of, for its routes."""

from dataclasses import dataclass
from typing import Self

from starlette.requests import Request

from srp4ctr.runtime.async_state_store import AsyncStateStore
from srp4ctr_service.events import Events
from srp4ctr_service.monitored import Monitored
from srp4ctr_service.scoring import Scoring
from srp4ctr_service.settings import Settings
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.versions import Versions


@dataclass(frozen=True)
class Parts:
    """Opened and closed by the app's lifespan."""

    settings: Settings
    redis_url: str
    telemetry: Telemetry
    store: AsyncStateStore
    versions: Versions
    scoring: Scoring
    events: Events
    monitored: Monitored

    @classmethod
    def of(cls, request: Request) -> Self:
        """The parts of the app that a request is for."""
        parts: Self = request.app.state.parts
        return parts
