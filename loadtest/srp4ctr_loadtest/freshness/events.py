"""From an event to the first score that knows of it, while the service is busy: an open loop of events beside one of requests.

Service and refresh worker share one core. Events come at random times that were fixed before (a Poisson process). Some of them, the
samples, are of users of whom nothing else is sent; as soon as one is acknowledged, its user is asked for until an answer
says that the state lacks no event and is younger than this one. A sample's time begins when its event was due, so that a
stall counts for all who would have come meanwhile.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
import uvloop

from srp4ctr.contract.errors import Srp4ctrError, StoreError
from srp4ctr.contract.events import RawEvent, unpack_history
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.serving import RunningService
from srp4ctr_loadtest.freshness.workplace import Workplace, cpu_s
from srp4ctr_loadtest.http_load import Connection, Load, Request, closed_loop, connect, open_loop
from srp4ctr_loadtest.subject import Subject

CANDIDATES = 100
CONNECTIONS = 8
ROUNDS = 3
LOAD_SHARE = 0.5
"""Of the requests a second that the service can answer when it has nothing else to do: half load."""
LEAD_S, TAIL_S = 2.0, 5.0
"""How much longer than the events the requests last, before and after."""
POLL_S = 0.005
POLL_GROWTH = 0.05
"""A sample that is long in coming is asked for in steps of this part of its age: asking must not be what delays it."""
GIVE_UP_S = 60.0
RESEND_S = 0.1
REFUSED = (503, 504)
"""Statuses that a client answers by asking again."""
HISTORIES = 1000
"""Stored histories that events are drawn from."""


@dataclass(frozen=True)
class Arrivals:
    """Events a second on average, for so many seconds, and how many a second of them are samples."""

    per_s: float = 200.0
    seconds: float = 60.0
    samples_per_s: float = 20.0


@dataclass
class Sample:
    """Moments of one event, seconds on one clock; `fresh` is None where no score knew of it in time."""

    due: float
    sent: float
    acknowledged: float
    fresh: float | None = None


@dataclass
class Outcome:
    """What came of the events: seconds until all were acknowledged and until all samples were fresh, moments of the samples;
    of all events, seconds from when they were due to when they were sent and to when they were acknowledged.
    """

    seconds: float = 0.0
    taken_in_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    acknowledged_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    polls: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Freshness:
    """Milliseconds from when an event was due, and from its acknowledgement, to the first score that knows of it.

    Events that are refused are sent again, and their times go on. CPU: milliseconds an event of the refresh worker and of Redis (which has the requests to serve, too), and each process's share
    of a core. A sample that no score knew of in time counts as if it had been at the end of the wait.
    """

    events: int
    events_per_s: float
    refused: int
    samples: int
    never_fresh: int
    event_to_score_p50_ms: float
    event_to_score_p99_ms: float
    event_to_score_max_ms: float
    acknowledged_to_score_p50_ms: float
    acknowledged_to_score_p99_ms: float
    acknowledged_p50_ms: float
    acknowledged_p99_ms: float
    sent_late_p99_ms: float
    poll_ms: float
    polls_per_s: float
    candidates: int
    capacity_rps: float
    scores_per_s: float
    scores_p50_ms: float
    scores_p99_ms: float
    scores_refused: int
    cheaper_answers: int
    worker_cpu_ms_per_event: float
    redis_cpu_ms_per_event: float
    worker_cpu_share: float
    service_cpu_share: float
    redis_cpu_share: float
    left_waiting: int
    dead_letters: int


def measure(
    workplace: Workplace, subject: Subject, arrivals: Arrivals, candidates: int, count: int
) -> Freshness:
    """Run the service and a worker, find what the service can do in rounds of `count` requests, then send events."""
    actor = Actor(workplace, subject, arrivals)
    # The requests have a process of their own: who measures must not wait for them.
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        workplace.service() as service,
        workplace.worker() as worker,
    ):
        server = psutil.Process(service.pid)
        requests = subject.requests(service.url, [candidates] * len(subject.users))
        uvloop.run(actor.until_refreshed(service.url))
        pool.submit(
            closed_loop, service.url, requests, connections=CONNECTIONS, count=max(count, len(requests))
        ).result()
        rounds = [
            pool.submit(closed_loop, service.url, requests, connections=CONNECTIONS, count=count).result()
            for _ in range(ROUNDS)
        ]
        capacity = max(load.rate for load in rounds)
        asking = pool.submit(
            open_loop,
            service.url,
            requests,
            connections=4 * CONNECTIONS,
            rate=LOAD_SHARE * capacity,
            seconds=LEAD_S + arrivals.seconds + TAIL_S,
        )
        time.sleep(LEAD_S)
        processes = (worker, server, workplace.redis_process)
        before = [cpu_s(process) for process in processes]
        outcome = uvloop.run(actor.run(service.url))
        used = [cpu_s(process) - had for process, had in zip(processes, before, strict=True)]
        asked = asking.result()
        cheaper = _cheaper_answers(service)
    _check(asked)
    streams = ActedStreams(workplace.client, workplace.keys, "benchmark")
    return _freshness(outcome, asked, capacity, candidates, used, cheaper, streams)


class Actor:
    """Sends events in users' names, and asks for the samples' scores."""

    def __init__(self, workplace: Workplace, subject: Subject, arrivals: Arrivals) -> None:
        """Half of the users at most are sampled, each in turn; the other events are of the rest. StoreError without users."""
        generator = np.random.default_rng(0)
        users = generator.permutation(np.array(subject.users)).tolist()
        if len(users) < 2:
            raise StoreError(f"{subject.version} has fewer than two users to send events for")
        self._arrivals = arrivals
        wanted = int(arrivals.samples_per_s * arrivals.seconds)
        sampled = min(max(1, wanted), len(users) // 2)
        self._sampled, self._others = users[:sampled], users[sampled:]
        self._events = _stored_events(workplace, users)
        self._candidate = subject.items(generator, 1)
        self._generator = generator
        self._numbers = itertools.count()

    async def until_refreshed(self, url: str) -> None:
        """Send one event and return when a score knows of it: then the worker works. Srp4ctrError where none ever does."""
        run = _Run(self._candidate, url)
        async with run:
            await run.act(asyncio.get_running_loop().time(), self._event(self._sampled[0]), sample=True)
        if run.outcome.samples[0].fresh is None:
            raise Srp4ctrError(
                "no score knew of an event: the refresh worker does not work; its log stands above"
            )

    async def run(self, url: str) -> Outcome:
        """Send all events, each at its time, and wait for the samples."""
        loop, run, arrivals = asyncio.get_running_loop(), _Run(self._candidate, url), self._arrivals
        number = int(arrivals.per_s * arrivals.seconds * 1.2) + 10
        times = np.cumsum(self._generator.exponential(1 / arrivals.per_s, number))
        times = times[times < arrivals.seconds]
        drawn = self._generator.random(len(times)) < arrivals.samples_per_s / arrivals.per_s
        sampled: Iterator[str] = itertools.cycle(self._sampled)
        others = self._generator.integers(len(self._others), size=len(times)).tolist()
        async with run:
            began = loop.time()
            sent = []
            for due, is_sample, other in zip((began + times).tolist(), drawn.tolist(), others, strict=True):
                wait_s = due - loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                user = next(sampled) if is_sample else self._others[other]
                sent.append(asyncio.create_task(run.act(due, self._event(user), sample=is_sample)))
            await asyncio.gather(*sent)
            run.outcome.seconds = loop.time() - began
            run.outcome.taken_in_s = run.last_acknowledged - began
        return run.outcome

    def _event(self, user: str) -> dict[str, object]:
        like = self._events[int(self._generator.integers(len(self._events)))]
        return {
            "user_id": user,
            "item_id": like.item_id,
            "event_id": f"freshness-{next(self._numbers)}",
            "timestamp_ms": time.time_ns() // 1_000_000,
            "features": like.features,
        }


class _Run:
    """Events and questions over connections that are kept open."""

    def __init__(self, candidate: Sequence[str], url: str) -> None:
        self.outcome = Outcome()
        self.last_acknowledged = 0.0
        self._candidate = candidate
        self._url = url
        self._opened: list[Connection] = []
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()

    async def __aenter__(self) -> None:
        self._opened = await connect(self._url, 8 * CONNECTIONS)
        for connection in self._opened:
            self._free.put_nowait(connection)

    async def __aexit__(self, *_: object) -> None:
        for connection in self._opened:
            connection.close()

    async def act(self, due: float, event: dict[str, object], *, sample: bool) -> None:
        """Send one event; where it is a sample, ask until a score knows of it."""
        loop = asyncio.get_running_loop()
        request = Request.post(f"{self._url}/events", orjson.dumps({"events": [event]}))
        sent = loop.time()
        # What was refused may have been stored all the same: then it is a duplicate.
        while (answer := await self._ask(request)) is None:
            if loop.time() > due + GIVE_UP_S:
                raise Srp4ctrError(f"an event was refused for {GIVE_UP_S:.0f} s")
            await asyncio.sleep(RESEND_S)
        self.last_acknowledged = acknowledged = loop.time()
        if answer["too_old"]:
            raise Srp4ctrError("an event was too old for its user's history; is the machine's clock right?")
        self.outcome.acknowledged_s.append(acknowledged - due)
        self.outcome.late_s.append(sent - due)
        if sample:
            one = Sample(due, sent, acknowledged)
            self.outcome.samples.append(one)
            await self._until_fresh(str(event["user_id"]), one)

    async def _until_fresh(self, user: str, sample: Sample) -> None:
        loop = asyncio.get_running_loop()
        question = {"user_id": user, "item_ids": self._candidate, "deadline_ms": 10_000}
        request = Request.post(f"{self._url}/score", orjson.dumps(question))
        while loop.time() < sample.due + GIVE_UP_S:
            answer = await self._ask(request)
            now = loop.time()
            self.outcome.polls += 1
            if answer is not None and _knows(answer["user_state"], now - sample.sent):
                sample.fresh = now
                return
            await asyncio.sleep(max(POLL_S, POLL_GROWTH * (now - sample.due)))

    async def _ask(self, request: Request) -> dict[str, Any] | None:
        """The answer; None where the request was refused. Srp4ctrError where it was wrong."""
        connection = await self._free.get()
        if not connection.usable:
            # The service ends what has been idle for some seconds.
            (connection,) = await connect(self._url, 1)
            self._opened.append(connection)
        status, body = await connection.ask(request)
        self._free.put_nowait(connection)
        if status in REFUSED:
            self.outcome.refused += 1
            return None
        if status != 200:
            raise Srp4ctrError(f"a request was answered with {status}: {body.decode(errors='replace')}")
        answer: dict[str, Any] = orjson.loads(body)
        return answer


def _knows(state: Mapping[str, Any], since_sent_s: float) -> bool:
    """Whether the state of an answer has an event that was sent so long ago."""
    behind, age_ms = state["events_behind"], state["age_ms"]
    # A state from before may be answered with until Redis's notice of the event has come. Ages are in whole milliseconds.
    return behind == 0 and age_ms is not None and age_ms <= 1000 * since_sent_s + 1


def _stored_events(workplace: Workplace, users: Sequence[str]) -> list[RawEvent]:
    pipeline = workplace.client.pipeline(transaction=False)
    for user in users[:HISTORIES]:
        pipeline.lrange(workplace.keys.history(user), 0, -1)
    events = [event for stored in pipeline.execute() for event in unpack_history(stored)]
    if not events:
        raise StoreError("no user has a raw history to draw events from")
    return events


def _cheaper_answers(service: RunningService) -> int:
    """Answers of the service that were not the model's from the user's own state."""
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    counted = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    cheaper = ("srp4ctr_degraded_total", 'srp4ctr_answers_total{tier="prior"')
    return int(sum(float(value) for name, value in counted.items() if name.startswith(cheaper)))


def _check(asked: Load) -> None:
    if not set(asked.statuses) <= {200, *REFUSED}:
        raise Srp4ctrError(f"not every request was answered: {dict(asked.statuses)}")


def _freshness(
    outcome: Outcome,
    asked: Load,
    capacity: float,
    candidates: int,
    used: Sequence[float],
    cheaper: int,
    streams: ActedStreams,
) -> Freshness:
    events, seconds = len(outcome.acknowledged_s), outcome.seconds
    ends = [GIVE_UP_S + one.due if one.fresh is None else one.fresh for one in outcome.samples]
    since_due = [end - one.due for end, one in zip(ends, outcome.samples, strict=True)]
    since_known = [end - one.acknowledged for end, one in zip(ends, outcome.samples, strict=True)]
    total = _milliseconds(since_due, 50, 99, 100)
    known = _milliseconds(since_known, 50, 99)
    taken = _milliseconds(outcome.acknowledged_s, 50, 99)
    scores = asked.milliseconds(50, 99)
    worker, server, store = used
    return Freshness(
        events=events,
        events_per_s=events / outcome.taken_in_s,
        refused=outcome.refused,
        samples=len(outcome.samples),
        never_fresh=sum(one.fresh is None for one in outcome.samples),
        event_to_score_p50_ms=total[0],
        event_to_score_p99_ms=total[1],
        event_to_score_max_ms=total[2],
        acknowledged_to_score_p50_ms=known[0],
        acknowledged_to_score_p99_ms=known[1],
        acknowledged_p50_ms=taken[0],
        acknowledged_p99_ms=taken[1],
        sent_late_p99_ms=_milliseconds(outcome.late_s, 99)[0],
        poll_ms=1000 * POLL_S,
        polls_per_s=outcome.polls / seconds,
        candidates=candidates,
        capacity_rps=capacity,
        scores_per_s=asked.rate,
        scores_p50_ms=scores[0],
        scores_p99_ms=scores[1],
        scores_refused=sum(asked.statuses[status] for status in REFUSED),
        cheaper_answers=cheaper,
        worker_cpu_ms_per_event=1000 * worker / events,
        redis_cpu_ms_per_event=1000 * store / events,
        worker_cpu_share=worker / seconds,
        service_cpu_share=server / seconds,
        redis_cpu_share=store / seconds,
        left_waiting=streams.waiting(),
        dead_letters=streams.dead_letters(1)[0],
    )


def _milliseconds(seconds: Sequence[float], *percentiles: float) -> list[float]:
    if not seconds:
        raise Srp4ctrError("no event was a sample; measure for longer, or sample more of them")
    return [float(one) for one in 1000 * np.percentile(seconds, percentiles)]
