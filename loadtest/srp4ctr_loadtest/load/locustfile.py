"""Users of a ranking system, for locust: `locust -f` this file `--host URL`; also what `python -m srp4ctr_loadtest.load` starts.

Everything but the address is by `SRP4CTR_LOADTEST_...` variables, which `python -m srp4ctr_loadtest.load --help` lists. Users,
items and features are those of the active version, or of SRP4CTR_LOADTEST_POPULATION. Every answer is checked; what is
wrong with one is the name of its failure. A closed loop: who waits for an answer asks nothing else meanwhile.
"""

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from locust import FastHttpUser, LoadTestShape, events, task
from locust.env import Environment

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_loadtest.load.alone import Alone, questions_alone
from srp4ctr_loadtest.load.answers import Answers
from srp4ctr_loadtest.load.checks import (
    NO_ANSWER,
    Versions,
    WrongAnswer,
    check_events,
    check_impressions,
    check_scores,
    is_refusal,
    status_problem,
)
from srp4ctr_loadtest.load.population import Population
from srp4ctr_loadtest.load.replay import read_questions
from srp4ctr_loadtest.load.settings import read_load_settings
from srp4ctr_loadtest.load.shapes import users_at
from srp4ctr_loadtest.load.workload import Question, Workload, new_run

settings = read_load_settings()
headers = settings.headers() | {"content-type": "application/json"}
population = (
    None
    if settings.replay is not None
    else Population.active(read_settings(StoreSettings))
    if settings.population is None
    else Population.read(settings.population)
)
logged = (
    None
    if settings.replay is None
    else itertools.cycle(read_questions(settings.replay, settings.deadline_ms))
)
asked_alone = questions_alone(population, settings)
answers = Answers("closed")
log = logging.getLogger(__name__)
numbers = itertools.count(1)
run = new_run()


class Run:
    """What all users of a run share: when it began, which versions have been active, what users were answered alone."""

    began = 0.0
    versions: Versions
    alone: Alone


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    parser.add_argument("--answers", metavar="FILE", help="write all answers' latencies there, as JSON")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _begin(environment: Environment, **_: object) -> None:
    assert environment.host is not None
    assert environment.runner is not None
    # Requests that are under way in the end are waited for, or a service that answers none in time would have failed none.
    environment.stop_timeout = settings.stop_s
    url = environment.host.rstrip("/")
    try:
        Run.versions = Versions(url, settings.headers())
        Run.alone = Alone(url, settings.headers(), asked_alone)
    except ServiceNotReady as error:
        log.critical("%s", error)
        environment.process_exit_code = 1
        environment.runner.quit()
    Run.began = time.perf_counter()


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def _end(environment: Environment, **_: object) -> None:
    answers.seconds = time.perf_counter() - Run.began
    path = environment.parsed_options and environment.parsed_options.answers
    if path:
        answers.write(Path(path))


class RankingUser(FastHttpUser):
    """Asks for scores, looks at them, now and then acts on the best, and asks again."""

    connection_timeout = network_timeout = settings.timeout_s
    # One connection each, kept.
    concurrency = 1

    def on_start(self) -> None:
        """Everyone draws differently."""
        number = next(numbers)
        self.random = np.random.default_rng([settings.seed, number])
        self.workload = None if population is None else Workload(population, settings, number, asked_alone)

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return float(self.random.exponential(settings.think_ms / 1000))

    @task
    def ask(self) -> None:
        """Score, and perhaps act."""
        if self.workload is None:
            assert logged is not None
            self._score(next(logged))
            return
        question = self.workload.question()
        answer = self._score(question)
        if answer is None:
            return
        request_id, scores = answer
        acts = self.workload.events(question, scores)
        if acts is not None:
            if settings.impressions:
                self._post(
                    "/impressions", Workload.impressions(question, scores, request_id), check_impressions
                )
            count = len(orjson.loads(acts)["events"])
            once = not settings.accept_refusals
            self._post("/events", acts, lambda told, body: check_events(count, told, body, once=once))

    def _score(self, question: Question) -> tuple[str, list[float]] | None:
        """The answer's request id and scores."""
        found: list[tuple[str, list[float]]] = []

        def check(told: str, body: bytes) -> None:
            answer = check_scores(question, told, body, Run.versions)
            answers.mix.count(answer, Run.alone.check(question, answer))
            found.append((told, answer["scores"]))

        self._post("/score", question.body, check)
        return found[0] if found else None

    def _post(self, path: str, body: bytes, check: Any) -> None:
        request_id = f"load-{run}-{next(numbers)}"
        began = time.perf_counter()
        with self.client.post(
            path,
            data=body.decode(),
            headers=headers | {"x-request-id": request_id},
            name=path,
            catch_response=True,
        ) as response:
            ms = 1000 * (time.perf_counter() - began)
            failure = ""
            if response.status_code == 0:
                failure = f"{NO_ANSWER}{type(response.error).__name__}"
            elif _cut_off(response):
                failure = f"{NO_ANSWER}connection closed"
            elif response.status_code != 200:
                failure = status_problem(response.status_code, response.content or b"")
            else:
                try:
                    check(request_id, response.content)
                except WrongAnswer as error:
                    failure = str(error)
            assert self.environment.runner is not None
            answers.add(began - Run.began, ms, path, failure, self.environment.runner.user_count)
            if failure and not (settings.accept_refusals and is_refusal(failure)):
                response.failure(failure)
            else:
                response.success()


def _cut_off(response: Any) -> bool:
    """Whether the connection ended within the answer, which locust's client does not say."""
    told = response.headers.get("content-length")
    return told is not None and int(told) != len(response.content or b"")


class Shaped(LoadTestShape):
    """As many users as the settings want at each time, then the end."""

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many of them may begin or end a second."""
        part = (time.perf_counter() - self.start_time) / settings.seconds
        if part >= 1:
            return None
        return users_at(settings.shape, settings.users, part), float(settings.users)
