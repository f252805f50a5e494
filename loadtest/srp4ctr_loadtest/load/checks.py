"""What is wrong with an answer, in few words that are the same for all that are wrong alike."""

import math
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import orjson

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr_loadtest.load.workload import Question

WRONG = "wrong answer: "
"""How the names of failures begin that no overload excuses."""
NO_ANSWER = "no answer: "
"""How those begin of connections that ended, or of waits that were given up."""
REFUSALS = (429, 503, 504)
"""Statuses by which a service, or what balances between several, says that it cannot answer now; a problem says why."""
MODEL_LIMIT_S = 5.0
LOOK_EVERY_S = 0.2


class Versions:
    """Which versions have been active, as far as GET /model told."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Asks for the first. Raises ServiceNotReady where there is none."""
        self._url = url
        self._headers = headers
        self.model = self._ask()
        if self.model is None:
            raise ServiceNotReady(f"GET {url}/model tells no model; is a version active?")
        self.seen = {str(self.model["version"])}
        self._never: set[str] = set()

    def has_been_active(self, version: str) -> bool:
        """Whether it was, or is by now: replicas follow an activation one after the other, so that it may take a moment."""
        give_up_at = time.monotonic() + MODEL_LIMIT_S
        while version not in self.seen | self._never:
            model = self._ask()
            if model is not None:
                self.seen.add(str(model["version"]))
            if version in self.seen:
                break
            if time.monotonic() > give_up_at:
                self._never.add(version)
            else:
                time.sleep(LOOK_EVERY_S)
        return version in self.seen

    def _ask(self) -> dict[str, Any] | None:
        request = urllib.request.Request(f"{self._url}/model", headers=dict(self._headers))  # noqa: S310 -- the user's own
        try:
            with urllib.request.urlopen(request, timeout=MODEL_LIMIT_S) as answer:  # noqa: S310 -- as above
                found: dict[str, Any] = orjson.loads(answer.read())
        except (OSError, HTTPException, ValueError):
            # Away, or killed within its answer.
            return None
        return found


@dataclass
class Mix:
    """How many answers were scored how."""

    states: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)
    """What was compared with what the user was answered alone, and how."""

    def count(self, answer: Mapping[str, Any], compared: str | None) -> None:
        """One more; `compared` is None where the question was not asked before the load."""
        if compared is not None:
            self.alone[compared] += 1
        self.states[answer["user_state"]["status"]] += 1
        self.tiers[answer["tier"]] += 1
        self.degraded.update(answer["degraded"])

    def as_json(self) -> dict[str, dict[str, int]]:
        """The counts."""
        return {
            name: dict(sorted(getattr(self, name).items()))
            for name in ("states", "tiers", "degraded", "alone")
        }


class WrongAnswer(Exception):  # noqa: N818 -- it reads as what it is
    """An answer that is not what the contract says; its text is one of few."""


def status_problem(status: int, body: bytes) -> str:
    """The name of what a status other than 200 says: the status, and the type where it is a problem."""
    try:
        kind = orjson.loads(body)["type"]
    except (ValueError, KeyError, TypeError):
        # Of a balancer, perhaps: nothing that the service would say.
        return str(status)
    return f"{status} {kind}"


def is_refusal(name: str) -> bool:
    """Whether a failure of that name is one that docs/contract.md has a client expect."""
    return name.startswith((NO_ANSWER, *(f"{status} " for status in REFUSALS)))


def check_scores(question: Question, request_id: str, body: bytes, versions: Versions) -> dict[str, Any]:
    """The answer to a POST /score that was answered with 200; raises WrongAnswer."""
    return _of_one_user(question, _identified(request_id, body, versions))


def check_rank(question: Question, request_id: str, body: bytes, versions: Versions) -> dict[str, Any]:
    """The answer to a POST /rank of different items, all of them wanted, with `scores` in the question's order; raises WrongAnswer."""
    answer = _identified(request_id, body, versions)
    items, scores = answer.get("item_ids"), answer.get("scores")
    if not isinstance(items, list) or not isinstance(scores, list) or len(scores) != len(items):
        raise WrongAnswer(f"{WRONG}not as many scores as items")
    if Counter(items) != Counter(question.item_ids):
        raise WrongAnswer(f"{WRONG}other items than were asked for")
    by_item = dict(zip(items, scores, strict=True))
    found = _of_one_user(question, answer | {"scores": [by_item[item] for item in question.item_ids]})
    if scores != sorted(scores, reverse=True):
        raise WrongAnswer(f"{WRONG}not the likeliest first")
    return found


def check_batch(
    questions: Sequence[Question], request_id: str, body: bytes, versions: Versions
) -> list[dict[str, Any]]:
    """Each user's answer of a POST /score/batch that was answered with 200, as POST /score gives it; raises WrongAnswer."""
    whole = _identified(request_id, body, versions)
    answers = whole.pop("answers", None)
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise WrongAnswer(f"{WRONG}not as many answers as users")
    if not all(isinstance(one, dict) for one in answers):
        raise WrongAnswer(f"{WRONG}not as the contract has it")
    return [_of_one_user(question, whole | one) for question, one in zip(questions, answers, strict=True)]


def _identified(request_id: str, body: bytes, versions: Versions) -> dict[str, Any]:
    """What every answer begins with, and the rest."""
    try:
        answer: dict[str, Any] = orjson.loads(body)
        told, version = answer["request_id"], str(answer["model_version"])
    except (ValueError, KeyError, TypeError):
        raise WrongAnswer(f"{WRONG}not as the contract has it") from None
    if told != request_id:
        raise WrongAnswer(f"{WRONG}another request's id")
    if not versions.has_been_active(version):
        raise WrongAnswer(f"{WRONG}a version that has not been active")
    return answer


def _of_one_user(question: Question, answer: dict[str, Any]) -> dict[str, Any]:
    try:
        scores, status = answer["scores"], answer["user_state"]["status"]
        degraded, _ = list(answer["degraded"]), answer["tier"]
    except (KeyError, TypeError):
        raise WrongAnswer(f"{WRONG}not as the contract has it") from None
    if not isinstance(scores, list) or len(scores) != len(question.item_ids):
        raise WrongAnswer(f"{WRONG}not as many scores as items")
    if not all(isinstance(one, float | int) and math.isfinite(one) and 0 <= one <= 1 for one in scores):
        raise WrongAnswer(f"{WRONG}a score that is no probability")
    if question.cold and not (status == "cold" or (status == "missing" and degraded)):
        raise WrongAnswer(f"{WRONG}a state for a user whom nobody knows")
    return answer


def check_impressions(request_id: str, body: bytes) -> None:
    """The answer to a POST /impressions of one impression that was answered with 200; raises WrongAnswer."""
    try:
        answer = orjson.loads(body)
        told, monitored = answer["request_id"], answer["monitored"]
    except (ValueError, KeyError, TypeError):
        raise WrongAnswer(f"{WRONG}not as the contract has it") from None
    if told != request_id:
        raise WrongAnswer(f"{WRONG}another request's id")
    if monitored not in (0, 1):
        raise WrongAnswer(f"{WRONG}more impressions monitored than sent")


def check_events(sent: int, request_id: str, body: bytes, *, once: bool) -> None:
    """The answer to a POST /events of so many new events that was answered with 200; raises WrongAnswer.

    `once`: nobody on the way has sent them twice, as a balancer does that loses a replica.
    """
    try:
        answer = orjson.loads(body)
        told, duplicates = answer["request_id"], len(answer["duplicates"])
        taken = answer["stored"] + len(answer["too_old"]) + duplicates
    except (ValueError, KeyError, TypeError):
        raise WrongAnswer(f"{WRONG}not as the contract has it") from None
    if told != request_id:
        raise WrongAnswer(f"{WRONG}another request's id")
    if taken != sent or (once and duplicates):
        raise WrongAnswer(f"{WRONG}not as many events stored as sent")
