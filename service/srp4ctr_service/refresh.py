"""`srp4ctr refresh`: a worker that keeps users' states as fresh as their events."""

import os
import secrets
import socket
from collections.abc import Sequence

import structlog
from prometheus_client import start_http_server

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.redis_client import connect, shown
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_service import logs
from srp4ctr_service.refresher import Refresher
from srp4ctr_service.settings import RefreshSettings
from srp4ctr_service.store_metrics import StoreMetrics
from srp4ctr_service.worker_command import settings_of, stop_signal

log = structlog.get_logger()

METRICS_LIMITS = ("redis_connect_timeout_ms", "redis_read_timeout_ms")
METRICS_LIMIT_MS = 500

DESCRIPTION = """\
Encode users anew as they act, until Ctrl-C. Several workers share the work.

Reads the streams and histories that POST /events writes to Redis, and the bundles below var/bundles of the active version,
of the one before it for a while, and of the one that is being activated. Writes those versions' user states to Redis, and
JSON log lines to standard output.
"""


def main(argv: Sequence[str]) -> int:
    """Work until SIGINT or SIGTERM; 0 after an orderly stop."""
    settings = settings_of(RefreshSettings, "refresh", DESCRIPTION, argv)
    logs.configure(settings.log_level)
    url = local_redis.ensure(settings)
    client, keys = connect(settings, url), Keys(settings.namespace)
    # Unlike any other worker's, also of one that had the same process id before.
    consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    streams = ActedStreams(client, keys, consumer)
    events = EventStore(client, keys, settings.retention)
    refresher = Refresher(settings, streams, events, StateStore(client, keys, settings.state_ttl_s))
    if settings.refresh_metrics_port is not None:
        # Of its own: whoever asks for metrics does not wait as long as the work may.
        brief = settings.model_copy(update=dict.fromkeys(METRICS_LIMITS, METRICS_LIMIT_MS))
        asked = connect(brief, url, retries=0)
        refresher.metrics.registry.register(StoreMetrics(asked, ActedStreams(asked, keys, consumer)))
        start_http_server(settings.refresh_metrics_port, registry=refresher.metrics.registry)
    stop = stop_signal()
    log.info("refreshing", redis=shown(url), consumer=consumer, var_dir=str(settings.var_dir))
    refresher.run(stop.is_set)
    return 0
