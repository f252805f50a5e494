"""Requests as a ranking system makes them: few users and items are asked for often, and what was shown is acted upon."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from srp4ctr_loadtest.load.population import Population
from srp4ctr_loadtest.load.settings import LoadSettings

COLD_USERS = 1_000_000_000
"""So many that hardly one is asked for twice."""
SHOWN = 10
"""Of the candidates, those that a user sees, the likeliest first."""
ACTS = 3
"""At most, on them."""
ALONE_SEED = 1_000_000_000
"""Beyond those of locust's users."""


def new_run() -> str:
    """A part of ids that no other run has, or its events would be duplicates, and its answers those of the other."""
    return secrets.token_hex(6)


@dataclass(frozen=True)
class Question:
    """The body of a POST /score, and what an answer to it must be like."""

    body: bytes
    user_id: str
    item_ids: Sequence[str]
    cold: bool = False
    """Whether it is known that nobody has heard of the user."""


class Zipf:
    """Draws places of a list of `count`: the k-th most popular with a probability in proportion to 1 / k ** skew."""

    def __init__(self, count: int, skew: float, popular: np.random.Generator) -> None:
        """`popular` decides which place is how popular."""
        weights = np.arange(1, count + 1, dtype=np.float64) ** -skew
        self._until = np.cumsum(weights / weights.sum())
        self._order = popular.permutation(count)

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """So many places, some of them more than once."""
        ranks = np.searchsorted(self._until, random.random(count), side="right")
        found: NDArray[np.int64] = self._order[np.minimum(ranks, len(self._order) - 1)]
        return found

    def draw_distinct(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """So many different places, popular ones first; all there are where they are fewer."""
        drawn = self.draw(random, 2 * count)
        _, first = np.unique(drawn, return_index=True)
        chosen = drawn[np.sort(first)][:count]
        if len(chosen) < min(count, len(self._order)):
            others = random.permutation(np.setdiff1d(self._order, chosen))
            chosen = np.concatenate([chosen, others[: count - len(chosen)]])
        return chosen


class Workload:
    """Questions of a population, and events after their answers."""

    def __init__(
        self, population: Population, settings: LoadSettings, seed: int, alone: Sequence[Question] = ()
    ) -> None:
        """`seed` decides whom and what is asked for; who is popular depends on the settings' seed alone.

        `alone`: questions that are asked again and again, whose users do nothing.
        """
        popular = np.random.default_rng(settings.seed)
        self._random = random = np.random.default_rng([settings.seed, seed])
        self._population = population
        self._settings = settings
        self._users = Zipf(len(population.users), settings.user_skew, popular)
        self._items = Zipf(len(population.items), settings.item_skew, popular)
        self._count = candidate_counts(settings, random)
        self._alone = alone
        self._quiet = frozenset(one.user_id for one in alone)
        self._events = f"load-{new_run()}-{seed}"
        self._acts = 0

    def question(self) -> Question:
        """The next."""
        random, population = self._random, self._population
        if self._alone and random.random() < self._settings.alone_share:
            return self._alone[int(random.integers(len(self._alone)))]
        cold = bool(random.random() < self._settings.cold_share)
        if cold:
            user = f"nobody-{random.integers(COLD_USERS)}"
        else:
            user = population.users[int(self._users.draw(random, 1)[0])]
        return self._about(user, cold=cold)

    @classmethod
    def of_some_users(cls, population: Population, settings: LoadSettings, count: int) -> list[Question]:
        """A question each for so many users whom the model knows, whoever is popular; the same for the same settings."""
        self = cls(population, settings, ALONE_SEED)
        users = self._random.choice(len(population.users), count, replace=False)
        return [self._about(population.users[user]) for user in users.tolist()]

    def _about(self, user: str, *, cold: bool = False) -> Question:
        random, population = self._random, self._population
        chosen = random.permutation(self._items.draw_distinct(random, self._count()))
        items = [population.items[place] for place in chosen.tolist()]
        body: dict[str, Any] = {"user_id": user, "item_ids": items}
        if population.context:
            body["context"] = {name: self._one_of(values) for name, values in population.context.items()}
        if self._settings.deadline_ms is not None:
            body["deadline_ms"] = self._settings.deadline_ms
        return Question(orjson.dumps(body), user, items, cold)

    def events(self, question: Question, scores: Sequence[float]) -> bytes | None:
        """A POST /events of what the user does with the best candidates; None: nothing, and never for users who are cold, or whose
        scores must stay what they are.
        """
        random = self._random
        if question.cold or question.user_id in self._quiet or random.random() >= self._settings.events_share:
            return None
        shown = _best(scores)
        acted = random.choice(shown, min(int(random.integers(1, ACTS + 1)), len(shown)), replace=False)
        now = time.time_ns() // 1_000_000
        events = []
        for later, place in enumerate(acted.tolist()):
            self._acts += 1
            events.append(
                {
                    "user_id": question.user_id,
                    "item_id": question.item_ids[place],
                    "event_id": f"{self._events}-{self._acts}",
                    "timestamp_ms": now + later,
                    "features": {
                        name: self._one_of(values) for name, values in self._population.behaviours.items()
                    },
                }
            )
        return orjson.dumps({"events": events})

    @staticmethod
    def impressions(question: Question, scores: Sequence[float], request_id: str) -> bytes:
        """A POST /impressions of what the user sees of the answer of that id."""
        shown = [question.item_ids[place] for place in _best(scores)]
        now = time.time_ns() // 1_000_000
        one = {
            "request_id": request_id,
            "user_id": question.user_id,
            "item_ids": shown,
            "timestamp_ms": now,
        }
        return orjson.dumps({"impressions": [one]})

    def _one_of(self, values: Sequence[Any]) -> Any:
        return values[int(self._random.integers(len(values)))]


def _best(scores: Sequence[float]) -> NDArray[np.int64]:
    """Places of what is shown."""
    return np.argsort(np.asarray(scores))[::-1][:SHOWN]


def candidate_counts(settings: LoadSettings, random: np.random.Generator) -> Callable[[], int]:
    """Draws how many candidates a request has, as the settings say it."""
    if "-" not in settings.candidates:
        counts = [int(one) for one in settings.candidates.split(",")]
        return lambda: counts[int(random.integers(len(counts)))]
    least, most = (int(one) for one in settings.candidates.split("-"))
    mean, sigma = np.log(settings.candidates_median), settings.candidates_sigma
    return lambda: int(np.clip(round(random.lognormal(mean, sigma)), least, most))
