"""The model of Triton's Python backend: strings in, probabilities out."""

from collections.abc import Sequence
from typing import Any

import redis
import triton_python_backend_utils

from srp4ctr_loadtest.peers.servers.scoring import Given, Model


class TritonPythonModel:
    """What the backend looks for in `model.py`."""

    def initialize(self, _arguments: dict[str, str]) -> None:
        """Load the model."""
        given = Given.read()
        self.model = Model(given)
        # `execute` is synchronous, and so is its client.
        self.redis: redis.Redis = redis.Redis.from_url(given.redis_url)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response to each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        backend = triton_python_backend_utils
        users, items = (
            backend.get_input_tensor_by_name(request, name).as_numpy() for name in ("user_id", "item_ids")
        )
        state = self.redis.get(self.model.key(users[0].decode()))
        scores = self.model.scores(state, [item.decode() for item in items])
        return backend.InferenceResponse([backend.Tensor("scores", scores)])
