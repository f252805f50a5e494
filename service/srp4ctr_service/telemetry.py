"""Prometheus metrics, of one process or of all workers. Every label takes values from a closed set, or one at a time."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from srp4ctr.contract.http_types import Degradation, StateStatus, Tier
from srp4ctr.runtime.event_store import Outcome
from srp4ctr_service.background import every
from srp4ctr_service.process_metrics import CountsCollector, WorkersCollector

SHARED_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which workers count together. prometheus_client reads it when it is imported."""
STAGES = ("parse", "state", "queue", "rows", "model", "answer", "total")
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_AGES = (1, 10, 60, 600, 3600, 6 * 3600, 86_400, 3 * 86_400, 7 * 86_400, 30 * 86_400)
_CANDIDATES = (1, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
# Narrow where click rates are, as drift is seen by how many move between bins.
_SCORE_BINS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FLUSH_AT = 256
FLUSH_EVERY_S = 1.0


class Telemetry:
    """The metrics, in a registry of their own, so that several apps can live in one process.

    What a request counts is noted and counted later, together with what others did: between two runs of a model, whose data
    fill the cache, the client library's code costs four times what it costs in a row.
    """

    def __init__(self) -> None:
        self._times: list[tuple[str, float]] = []
        self._sizes: list[int] = []
        self._age_ms: list[int] = []
        self._tally: defaultdict[Counter, int] = defaultdict(int)
        self._by_status: dict[tuple[str, int], Counter] = {}
        self._by_kind: dict[str, Counter] = {}
        self.registry = registry = CollectorRegistry()
        folder = os.environ.get(SHARED_VARIABLE)
        self._shared = None if folder is None else Path(folder)
        if self._shared is None:
            ProcessCollector(registry=registry)
        seconds = Histogram(
            "srp4ctr_score_seconds",
            "Time of one stage of POST /score: parse the body, read the user's state, queue for the model, "
            "look up item rows, run the model, build the answer; and their total",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = {stage: seconds.labels(stage) for stage in STAGES}
        self._candidates = Histogram(
            "srp4ctr_candidates", "Candidates of one request", buckets=_CANDIDATES, registry=registry
        )
        self._unknown_items = Counter(
            "srp4ctr_unknown_items", "Candidates that the catalogue lacks", registry=registry
        )
        states = Counter(
            "srp4ctr_user_states", "Requests by what was known of the user", ["status"], registry=registry
        )
        self._states = {status: states.labels(status) for status in get_args(StateStatus)}
        self._ages = Histogram(
            "srp4ctr_user_state_age_seconds",
            "Time since the user's state was encoded, where there was one",
            buckets=_AGES,
            registry=registry,
        )
        tiers = Counter("srp4ctr_answers", "Answers by what scored them", ["tier"], registry=registry)
        self._tiers = {tier: tiers.labels(tier) for tier in get_args(Tier)}
        degraded = Counter(
            "srp4ctr_degraded",
            "Answers that are not all they could be, by reason",
            ["reason"],
            registry=registry,
        )
        self._degraded = {reason: degraded.labels(reason) for reason in get_args(Degradation)}
        loads = Counter("srp4ctr_version_loads", "Model versions taken up", ["result"], registry=registry)
        self.version_loads = {result: loads.labels(result) for result in ("loaded", "failed")}
        self._problems = Counter(
            "srp4ctr_problems", "Answers that are problems, by type", ["type"], registry=registry
        )
        self._requests = Counter(
            "srp4ctr_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        events = Counter(
            "srp4ctr_events",
            "Events sent, by what became of them: stored, stored before, or older than all of a full history",
            ["outcome"],
            registry=registry,
        )
        self._events = {outcome: events.labels(outcome) for outcome in get_args(Outcome)}
        records = Counter(
            "srp4ctr_records",
            "Questions taken to be recorded, by whether they were written or dropped",
            ["outcome"],
            registry=registry,
        )
        self._written, self._dropped = records.labels("written"), records.labels("dropped")
        monitored = Counter(
            "srp4ctr_monitored",
            "Answers taken to be monitored, by whether they were written or dropped",
            ["outcome"],
            registry=registry,
        )
        self._kept, self._lost = monitored.labels("written"), monitored.labels("dropped")
        pushed_out = Counter(
            "srp4ctr_pushed_out",
            "Entries for the monitor that newer ones pushed out before it took them",
            ["kind"],
            registry=registry,
        )
        self._pushed_out = {kind: pushed_out.labels(kind) for kind in ("answer", "impression")}
        scores = Counter(
            "srp4ctr_scores",
            "Candidates of monitored answers by their probability: those up to the bin's end, and above the end before it",
            ["bin"],
            registry=registry,
        )
        self._score_bins = [scores.labels(f"{end:g}") for end in (*_SCORE_BINS, 1)]
        reads = Counter(
            "srp4ctr_near_cache_reads",
            "Reads of user states by the near cache",
            ["result"],
            registry=registry,
        )
        self._near_cache = {hit: reads.labels(result) for hit, result in ((True, "hit"), (False, "miss"))}
        self._versions = Gauge(
            "srp4ctr_model_info",
            "Workers that serve the version",
            ["version"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._version: str | None = None

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Count the time that each stage took, in seconds."""
        self._times.extend(seconds.items())
        if len(self._times) >= FLUSH_AT:
            self.flush()

    def count_answer(
        self,
        candidates: int,
        unknown_items: int,
        status: StateStatus,
        age_ms: int | None,
        tier: Tier,
        degraded: Sequence[Degradation],
    ) -> None:
        """Count an answer about one user: its candidates, those that nothing is known of, and how it came about."""
        if age_ms is not None:
            self._age_ms.append(age_ms)
        self._sizes.append(candidates)
        self._tally[self._unknown_items] += unknown_items
        self._tally[self._states[status]] += 1
        self._tally[self._tiers[tier]] += 1
        for reason in degraded:
            self._tally[self._degraded[reason]] += 1

    def count_problem(self, kind: str) -> None:
        """Count a problem; `kind` comes from the table of problems."""
        counter = self._by_kind.get(kind)
        if counter is None:
            counter = self._by_kind[kind] = self._problems.labels(kind)
        self._tally[counter] += 1

    def count_request(self, route: str, status: int) -> None:
        """Count a request; `route` is a path of the app or `unmatched`, never what a client sent."""
        counter = self._by_status.get((route, status))
        if counter is None:
            counter = self._by_status[route, status] = self._requests.labels(route, status)
        self._tally[counter] += 1

    def count_events(self, outcomes: Iterable[Outcome]) -> None:
        """Count events by what became of them."""
        for outcome in outcomes:
            self._tally[self._events[outcome]] += 1

    def count_records(self, written: int, dropped: int) -> None:
        """Count questions that were recorded, and those that could not be; from any thread."""
        self._written.inc(written)
        self._dropped.inc(dropped)

    def count_monitored(self, written: int, dropped: int) -> None:
        """Count answers that the monitor will find, and those that it will not."""
        self._kept.inc(written)
        self._lost.inc(dropped)

    def count_pushed_out(self, kind: Literal["answer", "impression"], entries: int) -> None:
        """Count monitored answers, or impressions of them, that had to make room."""
        self._pushed_out[kind].inc(entries)

    def count_scores(self, scores: NDArray[np.float32]) -> None:
        """Count candidates by their probability."""
        bins = np.bincount(np.searchsorted(_SCORE_BINS, scores), minlength=len(self._score_bins))
        for counter, number in zip(self._score_bins, bins.tolist(), strict=True):
            self._tally[counter] += number

    def count_near_cache(self, hit: bool) -> None:
        """Count a read of a user's state."""
        self._tally[self._near_cache[hit]] += 1

    def serve_version(self, version: str) -> None:
        """Show the version as the one served, and no other."""
        if self._version is not None:
            self._versions.labels(self._version).set(0)
        self._version = version
        self._versions.labels(version).set(1)

    def flush(self) -> None:
        """Count what was noted."""
        times, self._times = self._times, []
        sizes, self._sizes = self._sizes, []
        ages_ms, self._age_ms = self._age_ms, []
        tally, self._tally = self._tally, defaultdict(int)
        for stage, seconds in times:
            self._stage_seconds[stage].observe(seconds)
        for size in sizes:
            self._candidates.observe(size)
        for age_ms in ages_ms:
            self._ages.observe(age_ms / 1000)
        for counter, number in tally.items():
            counter.inc(number)

    def flushed(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Flush once a second while entered, so that other workers show it, too, and at the end."""

        async def flush() -> None:
            self.flush()

        return every(FLUSH_EVERY_S, flush, "flush-metrics")

    def text(self) -> bytes:
        """The metrics in Prometheus's text format; of other workers, what they had flushed."""
        self.flush()
        if self._shared is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        registry.register(CountsCollector(self._shared))
        registry.register(WorkersCollector(os.getppid()))
        return generate_latest(registry)
