"""What no server can go below, and what the user state saves: both in this process, without a server.

The floor is a request's work and nothing around it: parse JSON by orjson, read the state from Redis by redis-py's blocking client,
run the scorer, write JSON by orjson.
Before it are the paper's: who keeps no user states encodes the user's history anew for each candidate.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import orjson
import redis

from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import CONTEXT, Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, UNKNOWN, Codes
from srp4ctr.runtime.sessions import OnnxEncoder, OnnxScorer
from srp4ctr_loadtest.peers.asking import check_equal
from srp4ctr_loadtest.peers.measure import ROUNDS, Exam
from srp4ctr_loadtest.peers.protocols import Question, Scores
from srp4ctr_loadtest.peers.results import Row
from srp4ctr_loadtest.peers.servers.scoring import Given, Model
from srp4ctr_loadtest.peers.workload import Workload

FLOOR, BEFORE = "floor", "before"
TITLES = {
    FLOOR: "floor: ONNX Runtime, JSON, Redis GET",
    BEFORE: "before: the history encoded for each candidate",
}
BEFORE_RUNS = 3
STATE_LIMIT_S = 600
"""After which Redis forgets the states of made-up users by itself."""


def floor_rows(given: Given, exam: Exam, requests: int) -> list[Row]:
    """The floor at each number of candidates; raises WrongAnswer where its scores are not the service's."""
    model = Model(given)
    client: redis.Redis = redis.Redis.from_url(given.redis_url)

    def answer(body: bytes) -> bytes:
        asked = orjson.loads(body)
        state = client.get(model.key(asked["user_id"]))
        scores = model.scores(state, asked["item_ids"])
        return orjson.dumps({"scores": scores}, option=orjson.OPT_SERIALIZE_NUMPY)

    rows = []
    for candidates, questions in exam.questions.items():
        bodies = [question.body() for question in questions]
        found = [np.array(orjson.loads(answer(body))["scores"]) for body in bodies]
        check_equal(found, exam.expected[candidates])
        rows.append(_timed(FLOOR, candidates, requests, lambda number: answer(bodies[number % len(bodies)])))  # noqa: B023
    return rows


class Histories:
    """Made-up users with histories as long as the encoder takes: what is in them changes no operation."""

    def __init__(self, workload: Workload, users: Sequence[str]) -> None:
        bundle = workload.subject.bundle
        self._bundle = bundle
        self._encoder = OnnxEncoder(bundle, threads=1)
        self._scorer = OnnxScorer(bundle, threads=1)
        self._context = bundle.transforms.encode_values(CONTEXT, {}, CONTEXT)[None]
        generator = np.random.default_rng(0)
        fields, events = bundle.transforms.fields, bundle.transforms.schema.max_events
        self._events = events
        codes = bundle.items.codes
        self._inputs = {
            user: (
                codes[generator.integers(1, len(codes), events)],
                _codes(generator, fields.behaviour, events),
                _codes(generator, fields.user, 1)[0],
            )
            for user in users
        }

    def states(self) -> dict[str, bytes]:
        """The users' states as they would be published."""
        manifest = self._bundle.manifest
        return {user: manifest.encode_state(self.encode(user, 1)) for user in self._inputs}

    def encode(self, user: str, candidates: int) -> UserState:
        """The user's history in a batch with itself, once for each candidate; the last of the equal states."""
        arrays = self._encoder(*(np.repeat(codes[None], candidates, axis=0) for codes in self._inputs[user]))
        encoding = self._bundle.manifest.state.of_user(arrays, candidates - 1, self._events)
        now = time.time_ns() // 1_000_000
        return UserState(encoding.arrays, self._events, now, length=encoding.length)

    def scores(self, question: Question, *, stored: bool) -> Scores:
        """As one answers without user states; `stored`: rounded as a published state is, to be compared with it."""
        state = self.encode(question.user_id, len(question.item_ids))
        manifest = self._bundle.manifest
        if stored:
            state = manifest.decode_state(manifest.encode_state(state))
        items = self._bundle.items
        vectors = items.vectors.take(items.rows(question.item_ids), axis=0)
        return self._scorer(state, vectors, self._context).astype(np.float64)


def before_rows(histories: Histories, exam: Exam) -> list[Row]:
    """The cost of encoding for each candidate; raises WrongAnswer where the scores are not the service's."""
    rows = []
    for candidates, questions in exam.questions.items():
        found = [histories.scores(question, stored=True) for question in questions]
        check_equal(found, exam.expected[candidates])
        rows.append(
            _timed(
                BEFORE,
                candidates,
                BEFORE_RUNS,
                lambda number: histories.scores(questions[number % len(questions)], stored=False),  # noqa: B023
            )
        )
    return rows


def _codes(generator: np.random.Generator, fields: Sequence[Field], rows: int) -> Codes:
    """Codes [rows, W] of random values."""
    columns = [
        generator.integers(FIRST_VALUE, max(field.size, FIRST_VALUE + 1), rows)
        if field.size > FIRST_VALUE
        else np.full(rows, UNKNOWN)
        for field in fields
        for _ in range(field.width)
    ]
    return np.stack(columns, axis=1).astype(np.int32) if columns else np.empty((rows, 0), np.int32)


def _timed(server: str, candidates: int, runs: int, run: Callable[[int], object]) -> Row:
    costs, rates = [], []
    for _ in range(ROUNDS):
        cpu, began = time.process_time(), time.perf_counter()
        for number in range(runs):
            run(number)
        costs.append(1000 * (time.process_time() - cpu) / runs)
        rates.append(runs / (time.perf_counter() - began))
    return Row(server, candidates, min(costs), max(rates))
