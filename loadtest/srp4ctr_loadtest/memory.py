"""`python -m srp4ctr_loadtest.memory`: resident memory of the service over many requests of random candidate counts.

Counts are drawn log-uniformly from 1 to 2,000. Memory is that of the one process, as the kernel accounts it, looked at
after each twentieth of the requests; after the first, what the largest request takes is there, and from then on it
should stay. Prints a table for people, then one JSON line.
"""

import argparse
import json
import sys

import numpy as np
import psutil

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr_loadtest.http_load import closed_loop
from srp4ctr_loadtest.subject import Subject

CANDIDATES = 2000
DIFFERENT = 4000
"""Requests that are built once and sent again and again: more than there are candidate counts."""
LOOKS = 20
CONNECTIONS = 8


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="srp4ctr_loadtest.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="(default: %(default)s)")
    count = parser.parse_args().requests // LOOKS
    subject = Subject.active()
    drawn = CANDIDATES ** np.random.default_rng(0).random(DIFFERENT)
    seen = []
    with running_service(free_port(), {"SRP4CTR_REDIS_URL": subject.redis_url}) as running:
        server = psutil.Process(running.pid)
        requests = subject.requests(running.url, [CANDIDATES, *drawn.astype(int).tolist()])
        print(f"{'requests':>10} {'RSS MB':>8}")
        for look in range(LOOKS):
            load = closed_loop(running.url, requests, connections=CONNECTIONS, count=count)
            if set(load.statuses) != {200}:
                raise Srp4ctrError(f"not every request was answered: {dict(load.statuses)}")
            seen.append(round(server.memory_info().rss / 1e6, 1))
            print(f"{(look + 1) * count:>10} {seen[-1]:>8.1f}", flush=True)
    growth = seen[-1] - seen[0]
    print(
        json.dumps(
            {
                "benchmark": "memory",
                "model": subject.version,
                "requests": LOOKS * count,
                "rss_mb": seen,
                "growth_mb": round(growth, 1),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("memory", main))
