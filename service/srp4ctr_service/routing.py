"""Routes of the framework that are documented, and otherwise left alone."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

RAISED = "srp4ctr.raised"
"""Where a request's scope has the error that its route raised."""


class PlainRoute(APIRoute):
    """A documented route whose endpoint is called as it is, without FastAPI's injection and validation.

    The endpoint takes the Request and returns a Response; its schemas are given as `responses` and `openapi_extra`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself; what it raises, it returns, because the framework would answer it in its own way."""

        async def answer(request: Request) -> Response:
            try:
                response: Response = await self.endpoint(request)
            except Exception as error:  # noqa: BLE001 -- who answers it tells apart what was foreseen
                return Raised(error)
            return response

        return answer


class Raised(Response):
    """An error on its way out of the framework's app."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- an ASGI app takes them
        """Leave the error for who answers it."""
        scope[RAISED] = self._error
