"""By which routes open loops ask: POST /score, or the same questions ranked, or several users' at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from srp4ctr_loadtest.load.checks import Versions, check_batch, check_rank, check_scores
from srp4ctr_loadtest.load.workload import Question

SCORE, RANK, BATCH = "/score", "/rank", "/score/batch"
USERS = 4
"""Of a batch."""


@dataclass(frozen=True)
class Asked:
    """One request: where it goes, its body, and the question of each user in it."""

    route: str
    body: bytes
    questions: Sequence[Question]

    def check(
        self, request_id: str, body: bytes, versions: Versions
    ) -> list[tuple[Question, dict[str, Any]]]:
        """Each question with its answer, as POST /score would have it, of a body that came with 200; raises WrongAnswer."""
        if self.route == BATCH:
            return list(
                zip(self.questions, check_batch(self.questions, request_id, body, versions), strict=True)
            )
        [question] = self.questions
        check = check_rank if self.route == RANK else check_scores
        return [(question, check(question, request_id, body, versions))]


def by_routes(
    questions: Iterator[Question], rank_share: float, batch_share: float, seed: int
) -> Iterator[Asked]:
    """Requests that ask the questions in their order, so many of them by each route; the rest is scored."""
    random = np.random.default_rng(seed)
    for question in questions:
        drawn = random.random()
        # Which of two scores is of which place, a ranking of an item that was asked for twice does not tell.
        if drawn < rank_share and len(set(question.item_ids)) == len(question.item_ids):
            yield Asked(RANK, question.body, [question])
        elif rank_share <= drawn < rank_share + batch_share:
            yield _batch([question, *(one for _, one in zip(range(USERS - 1), questions, strict=False))])
        else:
            yield Asked(SCORE, question.body, [question])


def _batch(questions: Sequence[Question]) -> Asked:
    users = [orjson.loads(one.body) for one in questions]
    # A batch has one deadline, which the load test gives to all of its requests alike.
    [*_, deadline_ms] = [one.pop("deadline_ms", None) for one in users]
    body = {"requests": users} | ({} if deadline_ms is None else {"deadline_ms": deadline_ms})
    return Asked(BATCH, orjson.dumps(body), questions)
