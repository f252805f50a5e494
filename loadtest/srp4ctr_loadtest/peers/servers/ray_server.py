"""Ray Serve: one replica behind HAProxy, throughput-optimised, as its guide to high throughput says.

https://docs.ray.io/en/master/cluster/kubernetes/user-guides/kuberay-serve-high-throughput.html
"""

import os
import signal
import sys

# Read when Ray is imported.
os.environ.update(
    # The guide's two.
    RAY_SERVE_ENABLE_HA_PROXY="1",
    RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
    # On one core all its processes start one after the other, which takes longer than Serve waits by default.
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
    RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="60",
    # It reports its use to its makers, and writes a token into the home folder, where it is not told otherwise.
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
)

import ray
import redis.asyncio
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse

from srp4ctr_loadtest.peers.servers.scoring import Given, Model


@serve.deployment(
    num_replicas=1,
    # More than its router sends to a replica by default, so that no request waits for another's answer.
    max_ongoing_requests=1000,
)
class Scorer:
    """The model in a replica."""

    def __init__(self) -> None:
        given = Given.read()
        self.model = Model(given)
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(given.redis_url)

    async def __call__(self, request: Request) -> JSONResponse:
        """Click probabilities of the items."""
        asked = await request.json()
        state = await self.redis.get(self.model.key(asked["user_id"]))
        return JSONResponse({"scores": self.model.scores(state, asked["item_ids"]).tolist()})


def main() -> None:
    """Serve until SIGTERM."""
    given = Given.read()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # One core for the one replica; the rest of Serve asks for none.
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(
        Scorer.bind(),  # type: ignore[attr-defined]
        route_prefix="/score",
        blocking=True,
        # The access log costs a line a request.
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )


if __name__ == "__main__":
    main()
