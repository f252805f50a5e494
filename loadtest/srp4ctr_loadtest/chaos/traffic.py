"""The load: users who are scored and who act, each event sent until it is acknowledged; all is noted for the oracle."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import orjson

from srp4ctr.contract.errors import ServiceNotReady, Srp4ctrError
from srp4ctr.runtime.event_store import Outcome
from srp4ctr_loadtest.chaos.acts import Acts
from srp4ctr_loadtest.chaos.tellings import Tellings, body, wrong_outcomes
from srp4ctr_loadtest.chaos.turns import Turns
from srp4ctr_loadtest.chaos.versions import EXTRA

CONNECTIONS = 16
ACTS = 0.3
"""Of all requests, those that tell what users did."""
FORGETS = 0.01
"""Of all requests, those that want a user forgotten."""
BATCHES = 0.2
"""Of the questions, those about several users at a time."""
MOST_USERS = 4
"""Of a batch, and of events that are sent together."""
CANDIDATES, EXTRA_CANDIDATES = 20, 2
DEADLINE_MS = 5000
TIMEOUT_S = 20.0
RETRY_S = 0.1
GIVE_UP_S = 120.0
"""After so long without an answer something does not recover by itself."""
HOURS, DEVICES = 24, ("mobile", "desktop", "tablet")


async def _pause(give_up_at: float, what: str) -> None:
    if time.monotonic() > give_up_at:
        raise ServiceNotReady(f"{what} had no answer in {GIVE_UP_S:.0f} s")
    await asyncio.sleep(RETRY_S)


@dataclass(frozen=True)
class Observation:
    """An answer about a user, and which of the user's steps it may be of at all.

    The step at `least` was the last to have been acknowledged when it was asked for, that at `most` the last to have been sent
    when it was there; both times by the monotonic clock. The version that answered had been left for `left_s` seconds, as Turns counts them.
    """

    acts: Acts
    item_ids: Sequence[str]
    context: Mapping[str, Any]
    asked_at: float
    answered_at: float
    least: int
    most: int
    left_s: float | None
    model_version: str
    items_revision: str | None
    answer: Mapping[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether it is all that an answer can be: scored in full, of all that is known, with Redis there."""
        behind = self.answer["user_state"]["events_behind"]
        return (self.answer["tier"], self.answer["degraded"], behind) == ("full", [], 0)


@dataclass
class Traffic:
    """Asks and tells about users, a few of them far more often than most, about `rate` times a second."""

    url: str
    acts: Sequence[Acts]
    items: Sequence[str]
    turns: Turns
    rate: float
    random: np.random.Generator
    observations: list[Observation] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    """Requests that were not answered with 200, by status and type, or by what the connection ended in."""
    sent: int = 0
    """Events, each counted once."""
    acknowledged: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """What became of events that were acknowledged, by the rules."""
    forgotten: int = 0
    """Users, each time that they were."""
    wrong_outcomes: Counter[str] = field(default_factory=Counter)
    """What POST /events said of events of which something else must have become."""

    def __post_init__(self) -> None:
        weights = 1 / np.arange(1, len(self.acts) + 1)
        self._weights = self.random.permutation(weights / weights.sum())
        self.tellings = Tellings(self.items, self.random)
        self._stopping = False

    def stop(self) -> None:
        """Send nothing new; what has been sent is sent again until it is acknowledged."""
        self._stopping = True

    async def go_on(self) -> None:
        """Until stopped."""
        async with self._client() as client, asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._ask_and_tell(client))

    async def ask_about(self, users: Sequence[Acts]) -> list[Observation]:
        """One question about each, asked until it is answered; raises ServiceNotReady where one is not."""
        before = len(self.observations)
        async with self._client() as client:
            for one in users:
                give_up_at = time.monotonic() + GIVE_UP_S
                while not await self._ask(client, [one]):
                    await _pause(give_up_at, "POST /score")
        return self.observations[before:]

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=CONNECTIONS)
        )

    async def _ask_and_tell(self, client: httpx.AsyncClient) -> None:
        while not self._stopping:
            await asyncio.sleep(self.random.exponential(CONNECTIONS / self.rate))
            if self.random.uniform() < FORGETS:
                await self._forget(client)
                continue
            if self.random.uniform() < ACTS:
                await self._act(client)
                continue
            several = self.random.uniform() < BATCHES
            await self._ask(client, self._some(2, MOST_USERS) if several else self._some(1, 1))

    def _some(self, least: int, most: int) -> list[Acts]:
        count = int(self.random.integers(least, most + 1))
        places = self.random.choice(len(self.acts), count, replace=False, p=self._weights)
        return [self.acts[place] for place in places]

    async def _ask(self, client: httpx.AsyncClient, users: Sequence[Acts]) -> bool:
        """Ask about these users, and note what is answered; False where nothing is."""
        asked: list[dict[str, Any]] = [
            {
                "user_id": one.user_id,
                "item_ids": [
                    *self.random.choice(self.items, CANDIDATES).tolist(),
                    *self.random.choice(EXTRA, EXTRA_CANDIDATES).tolist(),
                ],
                "context": {
                    "hour": int(self.random.integers(HOURS)),
                    "device": str(self.random.choice(DEVICES)),
                },
            }
            for one in users
        ]
        least = [one.acknowledged for one in users]
        asked_at = time.monotonic()
        deadline = {"deadline_ms": DEADLINE_MS}
        if len(users) == 1:
            answer = await self._send(client, "POST", "/score", asked[0] | deadline)
        else:
            answer = await self._send(client, "POST", "/score/batch", {"requests": asked} | deadline)
        if answer is None:
            return False
        version = answer["model_version"]
        answered_at = time.monotonic()
        left_s = self.turns.left_s(version, asked_at, answered_at)
        answers = [answer] if len(users) == 1 else answer["answers"]
        for one, question, known, own in zip(users, asked, least, answers, strict=True):
            self.observations.append(
                Observation(
                    acts=one,
                    item_ids=question["item_ids"],
                    context=question["context"],
                    asked_at=asked_at,
                    answered_at=answered_at,
                    least=known,
                    most=len(one.steps) - 1,
                    left_s=left_s,
                    model_version=version,
                    items_revision=answer["items_revision"],
                    answer=own,
                )
            )
        return True

    async def _act(self, client: httpx.AsyncClient) -> None:
        """Some users, of those who have none under way, do something; it is sent until it is acknowledged."""
        users = [one for one in self._some(1, MOST_USERS) if not one.busy]
        if not users:
            return
        told, new = {}, 0
        for one in users:
            one.busy = True
            told[one] = self.tellings.of(one)
            new += len({event.event_id for event in told[one]} - {event.event_id for event in one.told})
        self.sent += new
        now = time.monotonic()
        expected = {one: iter(one.record(own, now)) for one, own in told.items()}
        sent = [(one, event, next(expected[one])) for one, event in self.tellings.in_turns(told)]
        events = [body(one.user_id, event) for one, event, _ in sent]
        answer, tries = await self._until_answered(client, "POST", "/events", {"events": events})
        self.wrong_outcomes.update(wrong_outcomes(answer, sent, again=tries > 1))
        self.outcomes.update(outcome for _, _, outcome in sent)
        self.acknowledged += new
        for one in users:
            one.acknowledge(time.monotonic())
            one.busy = False

    async def _forget(self, client: httpx.AsyncClient) -> None:
        """Somebody who has nothing under way is forgotten, and asked about at once."""
        (one,) = self._some(1, 1)
        if one.busy:
            return
        one.busy = True
        one.forget(time.monotonic())
        await self._until_answered(client, "DELETE", f"/users/{one.user_id}")
        one.acknowledge(time.monotonic())
        one.busy = False
        self.forgotten += 1
        await self._ask(client, [one])

    async def _until_answered(
        self, client: httpx.AsyncClient, method: str, path: str, body: object = None
    ) -> tuple[Any, int]:
        """The answer, and how often it was asked for."""
        tries, give_up_at = 1, time.monotonic() + GIVE_UP_S
        while True:
            answer = await self._send(client, method, path, body)
            if answer is not None:
                return answer, tries
            tries += 1
            await _pause(give_up_at, f"{method} {path}")

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, body: object = None) -> Any:
        """The answer; None where it is none, which is counted."""
        try:
            answer = await client.request(method, path, content=None if body is None else orjson.dumps(body))
        except httpx.HTTPError as error:
            self.errors[type(error).__name__] += 1
            return None
        if answer.status_code == httpx.codes.OK:
            return orjson.loads(answer.content)
        if answer.is_client_error:
            # Nothing of it would ever be taken.
            raise Srp4ctrError(f"{method} {path} was refused: {answer.text}")
        self.errors[f"{answer.status_code} {orjson.loads(answer.content)['type']}"] += 1
        return None
