"""What Redis holds, as Prometheus metrics: looked up when somebody asks for them, by one worker on behalf of all."""

from collections.abc import Iterator

import redis
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from srp4ctr.contract.errors import StoreUnavailable
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.redis_client import store_errors

log = structlog.get_logger()


class StoreMetrics(Collector):
    """Memory, entries that wait for a refresh worker, and dead letters; without them where Redis does not answer."""

    def __init__(self, client: redis.Redis, streams: ActedStreams) -> None:
        self._client = client
        self._streams = streams

    def describe(self) -> Iterator[Metric]:
        """The metrics' names, without asking Redis."""
        return self._families(0, 0, 0, 0, 0, 0)

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        try:
            with store_errors():
                info: dict[str, int] = self._client.info()
            letters, _ = self._streams.dead_letters(1)
            waiting = self._streams.waiting()
        except StoreUnavailable as error:
            log.warning("redis_not_measured", reason=str(error))
            yield GaugeMetricFamily("srp4ctr_redis_up", "Whether Redis answered", 0)
            return
        yield from self._families(
            1,
            info["used_memory"],
            info.get("maxmemory", 0),
            info["total_commands_processed"],
            waiting,
            letters,
        )

    @staticmethod
    def _families(
        up: int, used: int, limit: int, commands: int, waiting: int, letters: int
    ) -> Iterator[Metric]:
        yield GaugeMetricFamily("srp4ctr_redis_up", "Whether Redis answered", up)
        yield GaugeMetricFamily("srp4ctr_redis_memory_bytes", "Memory that Redis uses", used)
        yield GaugeMetricFamily(
            "srp4ctr_redis_memory_limit_bytes", "Redis's maxmemory; 0: none is set", limit
        )
        yield CounterMetricFamily("srp4ctr_redis_commands", "Commands that Redis has processed", commands)
        yield GaugeMetricFamily(
            "srp4ctr_refresh_waiting", "Users who acted and are not refreshed yet", waiting
        )
        yield GaugeMetricFamily("srp4ctr_dead_letters", "Entries that no worker could process", letters)
