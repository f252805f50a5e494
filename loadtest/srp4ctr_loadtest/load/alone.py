"""Whether users are answered under load what each of them was answered alone: nobody's answer is another user's."""

import itertools
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal
from urllib.error import HTTPError

import numpy as np
import orjson
from numpy.typing import NDArray

from srp4ctr_loadtest.load.checks import WRONG, WrongAnswer
from srp4ctr_loadtest.load.population import Population
from srp4ctr_loadtest.load.replay import read_questions
from srp4ctr_loadtest.load.settings import LoadSettings
from srp4ctr_loadtest.load.workload import Question, Workload, new_run

TOLERANCE = 1e-5
"""Of a score: other CPUs round otherwise."""
LIMIT_S = 5.0
USERS = 20
"""At most, and no more than a quarter of those whom the model knows: the others act."""

Outcome = Literal["same", "renewed", "not compared"]
Model = tuple[str, str | None]
"""Version, and revision of its items."""


def questions_alone(population: Population | None, settings: LoadSettings) -> list[Question]:
    """What is asked before the load: of some known users, or the first of a log; the same for the same settings."""
    if not settings.alone_share:
        return []
    if settings.replay is not None:
        first = {one.body: one for one in read_questions(settings.replay, settings.deadline_ms)[:USERS]}
        return list(first.values())
    assert population is not None
    return Workload.of_some_users(population, settings, min(USERS, len(population.users) // 4))


@dataclass(frozen=True)
class Answer:
    """One that was scored in full."""

    model: Model
    scores: NDArray[np.float64]
    age_ms: int | None
    waiting: bool
    """Whether the state lacks events, and so is about to be another."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Answer | None":
        """That of a body; None where something was missing, so that other scores would be right, too."""
        if content["tier"] != "full" or content["degraded"]:
            return None
        model = (str(content["model_version"]), content.get("items_revision"))
        state = content["user_state"]
        scores = np.array(content["scores"], dtype=np.float64)
        return cls(model, scores, state.get("age_ms"), bool(state.get("events_behind")))

    def same(self, other: "Answer") -> bool:
        """Whether the scores are."""
        return self.scores.shape == other.scores.shape and bool(
            np.allclose(self.scores, other.scores, rtol=0, atol=TOLERANCE)
        )


class Alone:
    """What users were answered before the load, one after the other; nobody else asked then."""

    def __init__(self, url: str, headers: Mapping[str, str], questions: Sequence[Question]) -> None:
        """Asks each of the questions, until one has no answer; those without full scores of all events are never compared."""
        self._url = f"{url}/score"
        self._headers = {**headers, "content-type": "application/json"}
        self._ids = (f"alone-{new_run()}-{number}" for number in itertools.count())
        self._began: dict[bytes, float] = {}
        self._right: dict[bytes, list[Answer]] = {}
        for question in questions:
            began = time.monotonic()
            try:
                answer = self._ask(question)
            except (OSError, HTTPException):
                break
            if answer is not None and not answer.waiting:
                self._began[question.body], self._right[question.body] = began, [answer]

    def check(self, question: Question, content: Mapping[str, Any]) -> Outcome | None:
        """What an answer is beside that of before, None where the question was not asked then; raises WrongAnswer.

        Where another version has answered, or the scores are others, the question is asked once more. What it is answered then is
        right, too, for a version that was not there before, and for a state that was encoded after the load test began to ask: the
        user has acted ("renewed").
        """
        right = self._right.get(question.body)
        if right is None:
            return None
        answer = Answer.of(content)
        if answer is None:
            return "not compared"
        if any(one.model == answer.model and one.same(answer) for one in right):
            return "same"
        began = time.monotonic()
        try:
            again = self._ask(question)
        except (OSError, HTTPException):
            # Or every answer of its kind would be waited for. Several of locust's users may have found that out at once.
            self._right.pop(question.body, None)
            return "not compared"
        if again is None or again.model != answer.model:
            return "not compared"
        known = any(one.model == again.model for one in right)
        passed_ms = 1000 * (began - self._began[question.body])
        newer = again.age_ms is not None and again.age_ms < passed_ms
        if not again.same(answer) or (known and not newer):
            raise WrongAnswer(f"{WRONG}scores that the user was not answered alone")
        right.append(again)
        return "renewed" if known else "same"

    def _ask(self, question: Question) -> Answer | None:
        """The answer in full; None where it is refused or is less. Raises OSError and HTTPException where there is none."""
        headers = {**self._headers, "x-request-id": next(self._ids)}
        request = urllib.request.Request(self._url, question.body, headers)  # noqa: S310 -- the user's own
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310 -- as above
                return Answer.of(orjson.loads(answer.read()))
        except (HTTPError, ValueError, KeyError, TypeError):
            return None
