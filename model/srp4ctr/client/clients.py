"""The two clients: for threads, and for an event loop."""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from srp4ctr.client.calls import (
    MODEL_CALL,
    Call,
    Json,
    MessagePack,
    R,
    RankFields,
    ScoreFields,
    ServiceUnreachable,
    batch_call,
    events_call,
    forget_call,
    impressions_call,
    rank_call,
    score_call,
)
from srp4ctr.client.tries import Tries
from srp4ctr.contract.http_types import (
    BatchResponse,
    Event,
    EventsResponse,
    Forgotten,
    Impression,
    ImpressionsResponse,
    ModelInfo,
    RankResponse,
    ScoreResponse,
    UserRequest,
)

TIMEOUT_S = 3.0
"""Long enough for one try more after the second that an overloaded service asks for."""


def _options(url: str, api_key: str | None) -> dict[str, Any]:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"base_url": url, "headers": headers}


def _unreachable(url: str, error: httpx.TransportError) -> ServiceUnreachable:
    return ServiceUnreachable(f"{url}: {str(error) or type(error).__name__}")


class Client:
    """For threads: one client keeps connections for all of them."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, binary: bool = False
    ) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for an answer, all tries together.
        Connecting, sending and the beginning of an answer each have what is left of it when a try begins.

        With `binary`, bodies are MessagePack and not JSON.
        """
        self._url = url
        self._wire = MessagePack() if binary else Json()
        self._timeout_s = timeout_s
        self._http = httpx.Client(**_options(url, api_key))

    def __enter__(self) -> Self:
        """The client; leaving closes its connections."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def score(self, user_id: str, item_ids: Sequence[str], **fields: Unpack[ScoreFields]) -> ScoreResponse:
        """Click probabilities of candidates, aligned with `item_ids`."""
        return self._send(score_call(user_id, item_ids, fields))

    def rank(self, user_id: str, item_ids: Sequence[str], **fields: Unpack[RankFields]) -> RankResponse:
        """The candidates, the likeliest click first."""
        return self._send(rank_call(user_id, item_ids, fields))

    def batch(self, requests: Sequence[UserRequest], *, deadline_ms: float | None = None) -> BatchResponse:
        """Click probabilities for several users, all by one model version."""
        return self._send(batch_call(requests, deadline_ms))

    def events(self, events: Sequence[Event]) -> EventsResponse:
        """Tell what users did; returns when the service has it."""
        return self._send(events_call(events))

    def impressions(self, impressions: Sequence[Impression]) -> ImpressionsResponse:
        """Tell what users were shown of answers; returns when the service has it."""
        return self._send(impressions_call(impressions))

    def forget(self, user_id: str) -> Forgotten:
        """Have all removed that the service's Redis has of a user."""
        return self._send(forget_call(user_id))

    def model(self) -> ModelInfo:
        """The model that scores, and what it takes."""
        return self._send(MODEL_CALL)

    def _send(self, call: Call[R]) -> R:
        tries, content = Tries(call.request, self._timeout_s), call.content(self._wire)
        while True:
            try:
                response = self._asked(call, tries.wait_s(), content)
            except httpx.TransportError as error:
                pause_s = tries.pause_s(error)
                if pause_s is None:
                    raise _unreachable(self._url, error) from error
            else:
                pause_s = tries.pause_s(response)
                if pause_s is None:
                    return call.outcome(response, self._wire)
            time.sleep(pause_s)

    def _asked(self, call: Call[R], wait_s: float, content: dict[str, Any]) -> httpx.Response:
        """The answer, read for so long at most: httpx's own limit is for each piece of it."""
        ends = time.monotonic() + wait_s
        pieces = []
        with self._http.stream(call.method, call.path, timeout=wait_s, **content) as response:
            for piece in response.iter_raw():
                pieces.append(piece)
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout(f"not all of the answer came within {wait_s:g} s")
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            content=b"".join(pieces),
            request=response.request,
        )


class AsyncClient:
    """For an event loop: `Client` with coroutines."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, binary: bool = False
    ) -> None:
        """`url` is the service's or its balancer's; `timeout_s` the longest wait for an answer, all tries together.

        With `binary`, bodies are MessagePack and not JSON.
        """
        self._url = url
        self._wire = MessagePack() if binary else Json()
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(**_options(url, api_key))

    async def __aenter__(self) -> Self:
        """The client; leaving closes its connections."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def score(
        self, user_id: str, item_ids: Sequence[str], **fields: Unpack[ScoreFields]
    ) -> ScoreResponse:
        """Click probabilities of candidates, aligned with `item_ids`."""
        return await self._send(score_call(user_id, item_ids, fields))

    async def rank(self, user_id: str, item_ids: Sequence[str], **fields: Unpack[RankFields]) -> RankResponse:
        """The candidates, the likeliest click first."""
        return await self._send(rank_call(user_id, item_ids, fields))

    async def batch(
        self, requests: Sequence[UserRequest], *, deadline_ms: float | None = None
    ) -> BatchResponse:
        """Click probabilities for several users, all by one model version."""
        return await self._send(batch_call(requests, deadline_ms))

    async def events(self, events: Sequence[Event]) -> EventsResponse:
        """Tell what users did; returns when the service has it."""
        return await self._send(events_call(events))

    async def impressions(self, impressions: Sequence[Impression]) -> ImpressionsResponse:
        """Tell what users were shown of answers; returns when the service has it."""
        return await self._send(impressions_call(impressions))

    async def forget(self, user_id: str) -> Forgotten:
        """Have all removed that the service's Redis has of a user."""
        return await self._send(forget_call(user_id))

    async def model(self) -> ModelInfo:
        """The model that scores, and what it takes."""
        return await self._send(MODEL_CALL)

    async def _send(self, call: Call[R]) -> R:
        tries, content = Tries(call.request, self._timeout_s), call.content(self._wire)
        while True:
            try:
                wait_s = tries.wait_s()
                async with asyncio.timeout(wait_s):
                    response = await self._http.request(call.method, call.path, timeout=wait_s, **content)
            except TimeoutError as error:
                raise ServiceUnreachable(f"{self._url}: no answer within {wait_s:g} s") from error
            except httpx.TransportError as error:
                pause_s = tries.pause_s(error)
                if pause_s is None:
                    raise _unreachable(self._url, error) from error
            else:
                pause_s = tries.pause_s(response)
                if pause_s is None:
                    return call.outcome(response, self._wire)
            await asyncio.sleep(pause_s)
