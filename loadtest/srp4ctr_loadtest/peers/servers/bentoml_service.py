"""BentoML: a service class with one asynchronous API, one worker; uvloop comes with being installed."""

import bentoml
import redis.asyncio
from pydantic import BaseModel

from srp4ctr_loadtest.peers.servers.scoring import Given, Model


class ScoreResponse(BaseModel):
    """What is answered."""

    scores: list[float]


@bentoml.service(
    workers=1,
    # Each of these costs something at every request.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    monitoring={"enabled": False},
)
class Scorer:
    """The model and its API."""

    def __init__(self) -> None:
        given = Given.read()
        self.model = Model(given)
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(given.redis_url)

    # Not a coroutine, it would run in a pool of threads.
    @bentoml.api(route="/score")
    async def score(self, user_id: str, item_ids: list[str]) -> ScoreResponse:
        """Click probabilities of the items."""
        state = await self.redis.get(self.model.key(user_id))
        return ScoreResponse(scores=self.model.scores(state, item_ids).tolist())
