"""MLServer's custom runtime, which reads and writes the V2 protocol's tensors by MLServer's codecs."""

import redis.asyncio
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from srp4ctr_loadtest.peers.servers.scoring import Given, Model


class Scorer(MLModel):
    """The model as MLServer runs it."""

    async def load(self) -> bool:
        """Load it."""
        given = Given.read()
        self.scorer = Model(given)
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(given.redis_url)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Click probabilities of the items."""
        user_id, item_ids = (StringCodec.decode_input(one) for one in payload.inputs)
        state = await self.redis.get(self.scorer.key(user_id[0]))
        scores = self.scorer.scores(state, item_ids)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])
