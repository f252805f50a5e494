"""`srp4ctr monitor`: the model's quality on what users are shown and click, as Prometheus metrics."""

from collections.abc import Sequence

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from srp4ctr.contract.errors import StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.feedback_store import FeedbackStore
from srp4ctr.runtime.redis_client import connect, shown
from srp4ctr_service import logs
from srp4ctr_service.online_quality import Clicks, Monitor, OnlineQuality
from srp4ctr_service.settings import MonitorSettings
from srp4ctr_service.worker_command import settings_of, stop_signal

log = structlog.get_logger()

DESCRIPTION = """\
Measure the model that serves on what users are shown and click, until Ctrl-C.

Reads from Redis the answers that services with SRP4CTR_MONITORED_SHARE keep, what POST /impressions says was shown of them,
and users' events. Removes from Redis the impressions that it has judged, and writes nothing but JSON log lines to standard output; its
metrics are on http://HOST:9101/metrics.
"""
EVERY_S = 5.0


def main(argv: Sequence[str]) -> int:
    """Work until SIGINT or SIGTERM; 0 after an orderly stop."""
    settings = settings_of(MonitorSettings, "monitor", DESCRIPTION, argv)
    logs.configure(settings.log_level)
    url = local_redis.ensure(settings)
    client, keys = connect(settings, url), Keys(settings.namespace)
    registry = CollectorRegistry()
    monitor = Monitor(
        FeedbackStore(client, keys),
        EventStore(client, keys, settings.retention),
        settings.monitor_window_s,
        Clicks(settings.monitor_clicks),
        OnlineQuality(settings.monitor_impressions, registry),
    )
    server, _ = start_http_server(settings.monitor_port, registry=registry)
    stop = stop_signal()
    log.info("monitoring", redis=shown(url), port=server.server_port, window_s=settings.monitor_window_s)
    while not stop.wait(EVERY_S):
        try:
            judged = monitor.step()
        except StoreError as error:
            log.warning("not_monitored", reason=str(error))
        else:
            if judged:
                log.info("judged", impressions=judged)
    return 0
