"""Everything about the service that an operator may change."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from srp4ctr.contract.http_types import MAX_CANDIDATES
from srp4ctr.runtime.feedback_store import KEPT_S
from srp4ctr.runtime.near_cache import ENTRIES, KEEP_S
from srp4ctr.runtime.settings import StoreSettings


class Settings(StoreSettings):
    """The service's settings, read once from `SRP4CTR_...` variables by `srp4ctr serve`."""

    host: str = Field(default="127.0.0.1", description="address to listen at")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen at; 0 takes a free one")
    workers: int = Field(
        default=1,
        ge=0,
        description="processes that answer, each on a core of its own; 0 takes as many as there are CPUs, or as the "
        "container's CPU quota allows",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level of log lines; info has one line a request"
    )

    api_keys_file: Path | None = Field(
        default=None,
        description="file with one API key a line, at least 16 characters each. Every request but health checks must "
        "then have one of them as `Authorization: Bearer KEY`. Unset: nobody is asked for a key",
    )
    max_candidates: int = Field(
        default=2000, ge=1, le=MAX_CANDIDATES, description="most item_ids that a request may have"
    )
    max_batch_candidates: int = Field(
        default=20_000, ge=1, description="most item_ids that all users of a batch may have together"
    )
    max_inline_items: int = Field(
        default=500, ge=0, description="most items whose attributes a user's question may give, in `items`"
    )
    max_body_bytes: int = Field(default=1 << 20, gt=0, description="largest body taken, bytes")
    arrival_timeout_ms: int = Field(
        default=5000,
        gt=0,
        description="limit for a request to arrive, from its first byte on, and for its answer to be read, milliseconds",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="connections that each worker has open, as far as its limit of open files allows; one more gets a 503",
    )
    max_held_bytes: int = Field(
        default=64 << 20,
        gt=0,
        description="of bodies that have not arrived as a whole, of all requests of a worker together; one more byte gets a 503",
    )
    deadline_ms: float = Field(
        default=500, gt=0, description="time for the whole answer where the request gives none, milliseconds"
    )

    deadline_grace_ms: float = Field(
        default=100,
        ge=0,
        description="an answer that is late by more is a 504, since nobody waits for it any more; milliseconds",
    )
    max_waiting_candidates: int = Field(
        default=20_000,
        gt=0,
        description="candidates of all requests that may wait for the model; more are refused with 503 at once",
    )

    near_cache_users: int = Field(
        default=ENTRIES,
        ge=0,
        description="user states kept in each process, as long as Redis does not say that they have changed",
    )
    near_cache_s: float = Field(
        default=KEEP_S, gt=0, description="longest time that a state is kept without asking Redis, seconds"
    )
    redis_score_timeout_ms: int = Field(
        default=25,
        gt=0,
        description="limit for Redis to answer one read of user states while scoring, milliseconds",
    )
    redis_probe_every_ms: int = Field(
        default=200,
        gt=0,
        description="while Redis is lost, only one request in this time tries it and the others do not wait, milliseconds",
    )
    events_max_ahead_s: float = Field(
        default=60,
        ge=0,
        description="how far the time of an event or an impression may be ahead of this machine's clock, seconds",
    )
    stale_after_s: float = Field(
        default=86_400, gt=0, description="a user's state that is older is used, and called stale; seconds"
    )
    version_poll_ms: int = Field(
        default=500, gt=0, description="time between two looks at the active version, milliseconds"
    )

    record_dir: Path | None = Field(
        default=None,
        description="folder of recorded requests, for `srp4ctr replay`: with users' ids and states, in files that this user "
        "alone may read. Unset: nothing is recorded",
    )
    record_rate: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="share of the users' questions that is recorded, drawn at random",
    )
    record_max_mb: int = Field(
        default=100,
        ge=1,
        description="size of that folder's records, of all processes together; the oldest go. Megabytes",
    )
    warmup_file: Path | None = Field(
        default=None,
        description="file of recorded requests that each model scores before it serves. Unset: one made-up request",
    )

    monitored_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of the requests whose answers are kept in Redis for a while, with the user's id, for "
        "`srp4ctr monitor` to join them with POST /impressions and events; 0: none, and the model's quality is not seen",
    )

    monitored_max_mb: int = Field(
        default=512,
        ge=16,
        description="what the kept answers, and the impressions of them, may take in Redis together, in megabytes; newer ones push out "
        "older ones",
    )

    traces_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/]+/.+",
        description="where OpenTelemetry traces are sent, by OTLP over HTTP, such as http://collector:4318/v1/traces. Unset: "
        "there are none",
    )
    traces_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the requests that is traced, of those whose `traceparent` does not say it",
    )

    onnx_threads: int = Field(default=1, ge=1, description="threads of one ONNX Runtime call")
    graceful_stop_s: int = Field(
        default=10, ge=0, description="time that running requests get to end when the service stops, seconds"
    )


class RefreshSettings(StoreSettings):
    """A refresh worker's settings, read once by `srp4ctr refresh`."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level of log lines"
    )
    onnx_threads: int = Field(default=1, ge=1, description="threads of one ONNX Runtime call")
    refresh_gather_ms: float = Field(
        default=50,
        ge=0,
        description="how long more events are gathered after the first, to encode their users together; milliseconds",
    )
    refresh_claim_after_s: float = Field(
        default=10,
        gt=0,
        description="what a worker has not finished for so long, another takes over; seconds",
    )
    refresh_claim_every_s: float = Field(
        default=2, gt=0, description="time between two looks at what other workers leave, seconds"
    )
    refresh_previous_s: float = Field(
        default=3600,
        ge=0,
        description="how long after an activation the version before is refreshed, too, so that a rollback is to fresh "
        "states; seconds",
    )
    refresh_metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port of the worker's Prometheus metrics; unset: it has none",
    )


class MonitorSettings(StoreSettings):
    """The monitor's settings, read once by `srp4ctr monitor`."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level of log lines"
    )
    monitor_port: int = Field(
        default=9101,
        ge=0,
        le=65535,
        description="port of the monitor's Prometheus metrics; 0 takes a free one",
    )
    monitor_window_s: float = Field(
        default=1800,
        gt=0,
        le=KEPT_S / 2,
        description="attribution window: an event is laid to an impression that came so long before it, at most; seconds",
    )
    monitor_clicks: str = Field(
        default="",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*=[^=]+)?$",
        description="which events are clicks: a behaviour feature and its values, such as `rating=4,5`. Empty: all are",
    )
    monitor_impressions: int = Field(
        default=50_000,
        ge=100,
        description="newest shown items that AUC, logloss and ECE are measured on, of all versions together",
    )
