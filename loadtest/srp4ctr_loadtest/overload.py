"""`python -m srp4ctr_loadtest.overload`: what the service does with more requests than it can score.

First a closed loop finds its capacity; then open loops offer parts and multiples of it at constant rates, each request with a
deadline. Goodput is what was scored in full within the deadline, counted from when the request was due. Beside it a
connection of its own asks for /livez again and again. The service has one core and the loader another where there are two. Needs
an active version (make demo-once). Prints a table for people, then one JSON line.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import uvloop

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.http_load import Load, Request, closed_loop, connect, offer
from srp4ctr_loadtest.subject import Subject

TIMES = (0.5, 1.0, 2.0, 5.0, 10.0)
DIFFERENT = 1000
"""Requests that are built before, and sent again and again."""
ASKING = 8
"""Connections that find the capacity."""
CONNECTIONS = 256
ROUNDS = 3
PATIENCE_S = 2.0
"""After the last request was due: what then has no answer gets none."""
LIVEZ_EVERY_S = 0.02
FULL, PRIOR = b'"tier":"full"', b'"tier":"prior"'


@dataclass
class Accepted(Load):
    """Which answers were in time, by tier; latencies in milliseconds of those that were accepted."""

    deadline_ms: float = 0.0
    full: int = 0
    prior: int = 0
    late: int = 0
    accepted_ms: list[float] = field(default_factory=list)
    livez_ms: list[float] = field(default_factory=list)

    def note(self, latency: float, status: int, body: bytes) -> None:
        super().note(latency, status, body)
        if status != 200:
            return
        self.accepted_ms.append(1000 * latency)
        if 1000 * latency > self.deadline_ms:
            self.late += 1
        elif FULL in body:
            self.full += 1
        else:
            assert PRIOR in body, body
            self.prior += 1


@dataclass(frozen=True)
class Row:
    """Rates a second at so many times the capacity; latencies of what was accepted, from when it was due."""

    times: float
    offered_rps: float
    full_rps: float
    prior_rps: float
    refused_rps: float
    late_rps: float
    unanswered: int
    p50_ms: float
    p99_ms: float
    livez_max_ms: float
    service_cpu: float
    service_waited: float
    loader_cpu: float
    sent_late_p99_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_loadtest.overload", description=__doc__)
    parser.add_argument("--candidates", type=int, default=500, help="of a request (default: %(default)s)")
    parser.add_argument("--deadline-ms", type=float, default=50, help="of a request (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each rate (default: %(default)s)")
    parser.add_argument(
        "--times", type=float, nargs="+", default=TIMES, help="of the capacity (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    subject = Subject.active()
    available = sorted(os.sched_getaffinity(0))
    with (
        on_core(available[-1]),
        running_service(free_port(), {"SRP4CTR_REDIS_URL": subject.redis_url}) as running,
    ):
        server = psutil.Process(running.pid)
        server.cpu_affinity(available[:1])
        found = capacity(subject, running.url, arguments.candidates)
        requests = subject.requests(running.url, [arguments.candidates] * DIFFERENT, arguments.deadline_ms)
        rows = [
            measured(server, running.url, requests, times, times * found, arguments)
            for times in arguments.times
        ]
    _print(subject.version, found, rows, arguments)
    return 0


def capacity(subject: Subject, url: str, candidates: int) -> float:
    """Answers a second of a closed loop without deadlines; the best of some rounds, as what else runs only takes away."""
    requests = subject.requests(url, [candidates] * DIFFERENT)
    return max(closed_loop(url, requests, connections=ASKING, count=DIFFERENT).rate for _ in range(ROUNDS))


def measured(
    server: psutil.Process,
    url: str,
    requests: Sequence[Request],
    times: float,
    rate: float,
    arguments: argparse.Namespace,
) -> Row:
    """One open loop."""
    load = Accepted("open", deadline_ms=arguments.deadline_ms)
    before, waited, used = server.cpu_times(), _waited_s(server.pid), time.process_time()
    uvloop.run(_offer(load, url, requests, rate, arguments.seconds))
    after, waited, used = (server.cpu_times(), _waited_s(server.pid) - waited, time.process_time() - used)
    if odd := {status: count for status, count in load.statuses.items() if status not in (200, 503, 504)}:
        raise Srp4ctrError(f"answers are neither scores nor refusals: {odd}")
    offered = load.statuses.total() + load.unanswered
    p50, p99 = np.percentile(load.accepted_ms, (50, 99)).tolist() if load.accepted_ms else (0.0, 0.0)
    seconds = arguments.seconds
    return Row(
        times=times,
        offered_rps=offered / seconds,
        full_rps=load.full / seconds,
        prior_rps=load.prior / seconds,
        refused_rps=(load.statuses[503] + load.statuses[504]) / seconds,
        late_rps=load.late / seconds,
        unanswered=load.unanswered,
        p50_ms=p50,
        p99_ms=p99,
        livez_max_ms=max(load.livez_ms),
        service_cpu=(after.user + after.system - before.user - before.system) / load.seconds,
        service_waited=waited / load.seconds,
        loader_cpu=used / load.seconds,
        sent_late_p99_ms=1000 * float(np.percentile(load.sent_late, 99)),
    )


async def _offer(load: Accepted, url: str, requests: Sequence[Request], rate: float, seconds: float) -> None:
    asking = asyncio.create_task(_ask_livez(load, url))
    await offer(
        load, url, requests, connections=CONNECTIONS, rate=rate, seconds=seconds, patience_s=PATIENCE_S
    )
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def _ask_livez(load: Accepted, url: str) -> None:
    loop = asyncio.get_running_loop()
    livez = Request(f"GET /livez HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n\r\n".encode())
    [connection] = await connect(url, 1)
    try:
        while True:
            began = loop.time()
            await connection.ask(livez)
            load.livez_ms.append(1000 * (loop.time() - began))
            await asyncio.sleep(LIVEZ_EVERY_S)
    finally:
        connection.close()


def _waited_s(pid: int) -> float:
    """Seconds that the process's first thread could have run in, and something else had its core; 0 where Linux does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def _print(version: str, found: float, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    print(
        f"POST /score, {arguments.candidates} candidates, deadline {arguments.deadline_ms:g} ms, model {version}, one core; "
        f"capacity {found:.0f} requests/s"
    )
    print(
        f"{'load':>6} {'offered/s':>10} | {'full/s':>7} {'prior/s':>8} {'refused/s':>10} {'late/s':>7} {'none':>5} | "
        f"{'p50 ms':>7} {'p99':>7} | {'livez max':>9} | {'CPU':>5} {'waited':>6} | {'loader':>6} {'sent late p99':>13}"
    )
    for row in rows:
        print(
            f"{row.times:>5g}x {row.offered_rps:>10.0f} | {row.full_rps:>7.0f} {row.prior_rps:>8.0f} {row.refused_rps:>10.0f} "
            f"{row.late_rps:>7.0f} {row.unanswered:>5} | {row.p50_ms:>7.1f} {row.p99_ms:>7.1f} | {row.livez_max_ms:>9.1f} | "
            f"{row.service_cpu:>5.2f} {row.service_waited:>6.2f} | {row.loader_cpu:>6.2f} "
            f"{row.sent_late_p99_ms:>13.1f}"
        )
    result = {
        "benchmark": "overload",
        "model": version,
        "candidates": arguments.candidates,
        "deadline_ms": arguments.deadline_ms,
        "capacity_rps": round(found, 1),
        "rows": [{name: round(value, 3) for name, value in asdict(row).items()} for row in rows],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code("overload", main))
