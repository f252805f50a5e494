"""FastAPI as its tutorial has it: a pydantic model in, another out as the response model, resources in lifespan, one uvicorn process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from srp4ctr_loadtest.peers.servers.scoring import Given, Model


class ScoreRequest(BaseModel):
    """What is asked."""

    user_id: str
    item_ids: list[str]


class ScoreResponse(BaseModel):
    """What is answered."""

    scores: list[float]


def create_app(given: Given) -> FastAPI:
    """The app."""
    model = Model(given)
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(given.redis_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/score")
    async def score(request: ScoreRequest) -> ScoreResponse:
        state = await client.get(model.key(request.user_id))
        return ScoreResponse(scores=model.scores(state, request.item_ids).tolist())

    return app


def main() -> None:
    """Serve until SIGTERM."""
    given = Given.read()
    # uvicorn[standard]: uvloop and httptools. The access log costs a line a request.
    uvicorn.run(
        create_app(given),
        host="127.0.0.1",
        port=given.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
