"""How a server is asked for scores and what it answers: one question, as each protocol's bytes.

`PLAIN` is our own JSON, the peers' as well where they let one choose. `V2_JSON` and `V2_BINARY` are the Open Inference
Protocol with JSON and with its extension for binary tensors.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr_loadtest.http_load import Request

Scores = NDArray[np.float64]


class WrongAnswer(Srp4ctrError):  # noqa: N818 -- it reads as what it is
    """A server answers something else than it was asked for."""


@dataclass(frozen=True)
class Question:
    """One user and C candidates."""

    user_id: str
    item_ids: list[str]

    def body(self) -> bytes:
        """As JSON, as our own service and most peers take it."""
        return orjson.dumps({"user_id": self.user_id, "item_ids": self.item_ids})


@dataclass(frozen=True)
class Call:
    """A POST request before it is known where to."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def to(self, url: str) -> Request:
        """The request to the server at the URL, as it goes over the wire."""
        return Request.post(f"{url}{self.path}", self.body, self.headers)


@dataclass(frozen=True)
class Protocol:
    """Makes a call of a question, and scores [C] of an answer's body; raises WrongAnswer where that has none."""

    call: Callable[[Question], Call]
    read: Callable[[bytes], Scores]

    def scores(self, status: int, body: bytes, candidates: int) -> Scores:
        """The scores of an answer that must be whole; raises WrongAnswer."""
        if status != 200:
            raise WrongAnswer(f"status {status}: {body[:500]!r}")
        try:
            scores = self.read(body)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"no scores in {body[:500]!r}: {error!r}") from error
        if scores.shape != (candidates,):
            raise WrongAnswer(f"{scores.shape} scores for {candidates} candidates")
        return scores


def _plain_call(question: Question) -> Call:
    return Call("/score", question.body())


def _plain_scores(body: bytes) -> Scores:
    answer = orjson.loads(body)
    # Our service says of itself when it has not done all that was asked.
    if answer.get("tier", "full") != "full" or answer.get("degraded"):
        raise WrongAnswer(f"cheaper than asked: tier {answer['tier']}, degraded {answer['degraded']}")
    return np.array(answer["scores"], np.float64)


V2_PATH = "/v2/models/score/infer"


def _v2_call(question: Question) -> Call:
    inputs = [_tensor("user_id", [question.user_id]), _tensor("item_ids", question.item_ids)]
    return Call(V2_PATH, orjson.dumps({"inputs": inputs}))


def _tensor(name: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts}


def _v2_scores(body: bytes) -> Scores:
    return np.array(orjson.loads(body)["outputs"][0]["data"], np.float64)


def _v2_binary_call(question: Question) -> Call:
    inputs, parts = [], []
    for name, texts in (("user_id", [question.user_id]), ("item_ids", question.item_ids)):
        encoded = [text.encode() for text in texts]
        parts.append(b"".join(struct.pack("<I", len(text)) + text for text in encoded))
        tensor = _tensor(name, texts)
        del tensor["data"]
        inputs.append({**tensor, "parameters": {"binary_data_size": len(parts[-1])}})
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    head = orjson.dumps({"inputs": inputs, "outputs": outputs})
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return Call(V2_PATH, head + b"".join(parts), headers)


def _v2_binary_scores(body: bytes) -> Scores:
    # The header that tells the JSON's length is not in the body; where the JSON ends is seen in itself.
    answer, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    size = answer["outputs"][0]["parameters"]["binary_data_size"]
    tensor = body[end:]
    if size != len(tensor):
        raise WrongAnswer(f"{len(tensor)} bytes of scores, and {size} announced")
    return np.frombuffer(tensor, "<f4").astype(np.float64)


PLAIN = Protocol(_plain_call, _plain_scores)
V2_JSON = Protocol(_v2_call, _v2_scores)
V2_BINARY = Protocol(_v2_binary_call, _v2_binary_scores)
