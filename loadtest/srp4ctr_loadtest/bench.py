"""`make bench`: what a scored request costs, beside the bare ONNX Runtime run of the same graph in the same process run.

Closed loop, one connection, the service on one core and the loader on another where there are two; no deadline can
be missed, so that every request is scored in full. CPU is the service's process as the kernel accounts it, its Redis
apart. Prints a table for people, then one JSON line.
"""

import argparse
import itertools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import unquote

import httpx
import numpy as np
import orjson
import psutil

from srp4ctr.contract.errors import Srp4ctrError, StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import UserState, decode_state
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore

CANDIDATES = (50, 100, 500, 2000)
USERS = 200
WARM_UP = 100


@dataclass(frozen=True)
class Cost:
    """CPU of the bare run and of the service, and the service's latency; milliseconds a request."""

    candidates: int
    bare_cpu_ms: float
    server_cpu_ms: float
    p50_ms: float
    p99_ms: float
    requests: int

    @property
    def ratio(self) -> float:
        """Whole service over bare run."""
        return self.server_cpu_ms / self.bare_cpu_ms


def bare_cpu_ms(bundle: Bundle, states: list[UserState], candidates: int, requests: int) -> float:
    """CPU of one run of the scorer, item rows looked up before; milliseconds."""
    scorer = OnnxScorer(bundle, threads=1)
    generator = np.random.default_rng(0)
    context = bundle.transforms.encode_values("context", {}, "context")[None]
    rows = [generator.integers(len(bundle.items.codes), size=candidates) for _ in range(50)]
    batches = [bundle.items.vectors[one] for one in rows]
    inputs = list(
        itertools.islice(zip(itertools.cycle(states), itertools.cycle(batches), strict=False), requests)
    )
    for state, codes in inputs[:WARM_UP]:
        scorer(state, codes, context)
    began = time.process_time()
    for state, codes in inputs:
        scorer(state, codes, context)
    return 1000 * (time.process_time() - began) / len(inputs)


def bodies(bundle: Bundle, users: list[str], candidates: int) -> list[bytes]:
    """Request bodies of random catalogue items for the users."""
    generator = np.random.default_rng(1)
    catalogue = bundle.items.index.ids[1:]
    return [
        orjson.dumps(
            {
                "user_id": user,
                "item_ids": [item.decode() for item in generator.choice(catalogue, candidates).tolist()],
                "deadline_ms": 10_000,
            }
        )
        for user in users
    ]


def served(
    url: str, server: psutil.Process, bundle: Bundle, users: list[str], candidates: int, requests: int
) -> Cost:
    """The service's cost for requests of that many candidates; the bare run's is left 0."""
    posted = bodies(bundle, users, candidates)
    latencies = []
    with httpx.Client(base_url=url, timeout=30) as client:
        for body in posted[:WARM_UP]:
            client.post("/score", content=body).raise_for_status()
        before = server.cpu_times()
        for body in itertools.islice(itertools.cycle(posted), requests):
            began = time.perf_counter()
            answer = client.post("/score", content=body)
            latencies.append(1000 * (time.perf_counter() - began))
            parsed = answer.raise_for_status().json()
            # A cheaper answer than was asked for would make the service look fast.
            assert parsed["tier"] == "full", parsed
            assert not parsed["degraded"], parsed
            assert len(parsed["scores"]) == candidates
        after = server.cpu_times()
    cpu = (after.user + after.system) - (before.user + before.system)
    p50, p99 = np.percentile(latencies, [50, 99])
    return Cost(candidates, 0.0, 1000 * cpu / requests, float(p50), float(p99), requests)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="a measurement (default: 2000)")
    requests = parser.parse_args().requests
    settings = read_settings(StoreSettings)
    redis_url = local_redis.ensure(settings)
    keys = Keys(settings.namespace)
    client = connect(settings, redis_url)
    store = StateStore(client, keys)
    active = store.active()
    if active is None:
        raise StoreError("no version is active; run: make demo-once")
    bundle = find_bundle(active.version, settings.bundles_dir)
    found = itertools.islice(
        client.scan_iter(f"{settings.namespace}:*:s:{active.version}:*", count=1000), USERS
    )
    users = [unquote(key.decode().rsplit(":", 1)[1]) for key in found]
    layout, fingerprint = bundle.manifest.state, bundle.manifest.fingerprint_bytes
    data = store.get_many(active.version, users)
    states = [decode_state(one, layout, fingerprint) for one in data if one is not None]

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    costs = []
    with running_service(free_port()) as running:
        server = psutil.Process(running.pid)
        server.cpu_affinity(cores[:1])
        for candidates in CANDIDATES:
            bare = bare_cpu_ms(bundle, states, candidates, requests)
            cost = served(running.url, server, bundle, users, candidates, requests)
            costs.append(Cost(**asdict(cost) | {"bare_cpu_ms": bare}))
    print(f"CPU of POST /score against the bare ONNX Runtime run, model {active.version}, one thread")
    print(
        f"{'candidates':>10} {'bare run ms':>12} {'service ms':>11} {'more ms':>8} {'ratio':>6} {'p50 ms':>7} {'p99 ms':>7}"
    )
    for cost in costs:
        more = cost.server_cpu_ms - cost.bare_cpu_ms
        print(
            f"{cost.candidates:>10} {cost.bare_cpu_ms:>12.3f} {cost.server_cpu_ms:>11.3f} {more:>8.3f} "
            f"{cost.ratio:>6.2f} {cost.p50_ms:>7.2f} {cost.p99_ms:>7.2f}"
        )
    rows = [{name: round(value, 4) for name, value in asdict(cost).items()} for cost in costs]
    print(
        json.dumps(
            {
                "benchmark": "score",
                "model": active.version,
                "loader": "closed loop, 1 connection",
                "rows": rows,
            }
        )
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Srp4ctrError as error:
        sys.exit(f"bench: {error}")
