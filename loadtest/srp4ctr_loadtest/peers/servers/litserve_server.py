"""LitServe: a LitAPI whose request and response are pydantic models, in one inference process behind one HTTP process."""

import litserve
import redis
from pydantic import BaseModel

from srp4ctr_loadtest.peers.servers.scoring import Given, Model


class ScoreRequest(BaseModel):
    """What is asked."""

    user_id: str
    item_ids: list[str]


class ScoreResponse(BaseModel):
    """What is answered."""

    scores: list[float]


class ScoreApi(litserve.LitAPI):
    """The steps of a request, in the inference process."""

    def setup(self, _device: str) -> None:
        """Load the model."""
        given = Given.read()
        self.model = Model(given)
        # The inference loop is synchronous, and so is its client.
        self.redis: redis.Redis = redis.Redis.from_url(given.redis_url)

    def decode_request(self, request: ScoreRequest) -> ScoreRequest:
        """The request as it is."""
        return request

    def predict(self, request: ScoreRequest) -> list[float]:
        """Read the state and score."""
        state = self.redis.get(self.model.key(request.user_id))
        scores: list[float] = self.model.scores(state, request.item_ids).tolist()
        return scores

    def encode_response(self, scores: list[float]) -> ScoreResponse:
        """The answer."""
        return ScoreResponse(scores=scores)


def main() -> None:
    """Serve until SIGTERM."""
    given = Given.read()
    server = litserve.LitServer(
        ScoreApi(api_path="/score"),
        accelerator="cpu",
        # As many as there are cores for it.
        workers_per_device=1,
        # ZeroMQ between the processes instead of a queue of a manager process.
        fast_queue=True,
    )
    # What is further named goes to uvicorn; the access log costs a line a request.
    server.run(
        host="127.0.0.1",
        port=given.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
