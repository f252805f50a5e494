"""Latency of requests for 1,000 candidates at half of what the service can do, the loader on another core.

Said twice: as a caller sees it, from when a request was due to the last byte of its answer, and as the service does, from when
it was given the request; the aim is of the latter, which a queue before the service does not show in.
"""

from srp4ctr_loadtest.bench.costs import CONNECTIONS, REQUESTS, checked
from srp4ctr_loadtest.bench.findings import Finding, Part
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.http_load import closed_loop, open_loop
from srp4ctr_loadtest.metrics import scraped

CANDIDATES = 1000
OPEN_LOOP_S = 30
AIM_MS = 10.0
WITHIN = 'srp4ctr_score_seconds_bucket{le="0.01",stage="total"}'
ALL = 'srp4ctr_score_seconds_count{stage="total"}'
"""Of the service's own histogram, one of whose bounds is the aim."""


def measure(place: Place) -> Part:
    """A closed loop for the rate, an open loop at half of it."""
    with place.service(None) as service:
        subject = place.workload.subject
        requests = subject.requests(service.url, [CANDIDATES] * len(subject.users))
        count = place.scaled(REQUESTS * 500 // CANDIDATES)
        closed_loop(service.url, requests, connections=CONNECTIONS, count=len(requests))
        most = checked(
            closed_loop(service.url, requests, connections=CONNECTIONS, count=count), CANDIDATES
        ).rate
        before = scraped(service.url)
        load = open_loop(
            service.url,
            requests,
            connections=4 * CONNECTIONS,
            rate=most / 2,
            seconds=place.scaled(OPEN_LOOP_S),
        )
        after = scraped(service.url)
    p50, p99, p999 = checked(load, CANDIDATES).milliseconds(50, 99, 99.9)
    within = 100 * (after[WITHIN] - before[WITHIN]) / (after[ALL] - before[ALL])
    asked = f"{CANDIDATES:,} candidates at half load ({load.rate:.0f} req/s)"
    return Part(
        [
            Finding("p99.caller", f"p99 from when a request was due, {asked}", p99, "ms", AIM_MS),
            Finding(
                "p99.service",
                f"answered by the service within {AIM_MS:g} ms of being given the request, {asked}",
                within,
                "%",
                99.0,
                at_least=True,
            ),
        ],
        detail={
            "rps": most,
            "rate": load.rate,
            "p50_ms": p50,
            "p99_ms": p99,
            "p999_ms": p999,
            "within": within,
        },
    )
