"""Prometheus metrics of one service process. Every label takes values from a closed set, or one value at a time."""

from collections.abc import Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from srp4ctr.contract.http_types import Degradation, StateStatus, Tier
from srp4ctr.runtime.state_reads import StateReads

STAGES = ("parse", "state", "queue", "rows", "model", "answer", "total")
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CANDIDATES = (1, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Telemetry:
    """The metrics, in a registry of their own, so that several apps can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        seconds = Histogram(
            "srp4ctr_score_seconds",
            "Time of one stage of POST /score: parse the body, read the user's state, queue for the model, "
            "look up item rows, run the model, build the answer; and their total",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = {stage: seconds.labels(stage) for stage in STAGES}
        self.candidates = Histogram(
            "srp4ctr_candidates", "Candidates of one request", buckets=_CANDIDATES, registry=registry
        )
        self.unknown_items = Counter(
            "srp4ctr_unknown_items", "Candidates that the catalogue lacks", registry=registry
        )
        states = Counter(
            "srp4ctr_user_states", "Requests by what was known of the user", ["status"], registry=registry
        )
        self.states = {status: states.labels(status) for status in get_args(StateStatus)}
        tiers = Counter("srp4ctr_answers", "Answers by what scored them", ["tier"], registry=registry)
        self.tiers = {tier: tiers.labels(tier) for tier in get_args(Tier)}
        degraded = Counter(
            "srp4ctr_degraded",
            "Answers that are not all they could be, by reason",
            ["reason"],
            registry=registry,
        )
        self.degraded = {reason: degraded.labels(reason) for reason in get_args(Degradation)}
        loads = Counter("srp4ctr_version_loads", "Model versions taken up", ["result"], registry=registry)
        self.version_loads = {result: loads.labels(result) for result in ("loaded", "failed")}
        self._problems = Counter(
            "srp4ctr_problems", "Answers that are problems, by type", ["type"], registry=registry
        )
        self._requests = Counter(
            "srp4ctr_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self._version = Gauge(
            "srp4ctr_model_info", "1 for the version served", ["version"], registry=registry
        )

    def watch(self, reads: StateReads) -> None:
        """Show how many reads of user states the near cache answered."""
        for name, value in (("hits", lambda: reads.hits), ("misses", lambda: reads.misses)):
            gauge = Gauge(
                f"srp4ctr_near_cache_{name}",
                f"{name.capitalize()} of the near cache since the start",
                registry=self.registry,
            )
            gauge.set_function(value)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Count the time that each stage took, in seconds."""
        for stage, value in seconds.items():
            self.stage_seconds[stage].observe(value)

    def count_problem(self, kind: str) -> None:
        """Count a problem; `kind` comes from the table of problems."""
        self._problems.labels(kind).inc()

    def count_request(self, route: str, status: int) -> None:
        """Count a request; `route` is a path of the app or `unmatched`, never what a client sent."""
        self._requests.labels(route, status).inc()

    def serve_version(self, version: str) -> None:
        """Show the version as the one served, and no other."""
        self._version.clear()
        self._version.labels(version).set(1)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
