"""Asks a server one question after the other: is it there, and are its scores right?"""

from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import numpy as np

from srp4ctr_loadtest.peers.protocols import Protocol, Question, Scores, WrongAnswer

LIMIT_S = 30.0
TOLERANCE = 1e-5
"""Of a probability: ONNX Runtime's own rounding and the digits of JSON, and nothing that a user would call a difference."""


def ask(url: str, protocol: Protocol, questions: Sequence[Question]) -> list[Scores]:
    """The answers' scores; raises WrongAnswer, and OSError or HTTPException where there is no server."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)
    found = []
    try:
        for question in questions:
            call = protocol.call(question)
            headers = {"content-type": "application/json", **call.headers}
            connection.request("POST", call.path, call.body, headers)
            answer = connection.getresponse()
            found.append(protocol.scores(answer.status, answer.read(), len(question.item_ids)))
    finally:
        connection.close()
    return found


def answers(url: str, protocol: Protocol, question: Question) -> bool:
    """Whether a server scores the question, rightly or not."""
    try:
        ask(url, protocol, [question])
    except (OSError, HTTPException, WrongAnswer):
        return False
    return True


def check_equal(found: Sequence[Scores], expected: Sequence[Scores]) -> float:
    """The largest difference of any score; raises WrongAnswer where it is more than rounding."""
    differences = [np.abs(one - other).max() for one, other in zip(found, expected, strict=True)]
    difference = float(np.max(differences))
    # As it is written, also where one is no number.
    if not difference <= TOLERANCE:
        raise WrongAnswer(
            f"scores differ from the service's by {difference:.2g}; at most {TOLERANCE:g} is rounding"
        )
    return difference
