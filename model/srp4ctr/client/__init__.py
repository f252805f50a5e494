"""A typed client of the service, for ranking systems in Python: `Client`, and `AsyncClient` with the same methods.

    with Client("http://localhost:8000") as client:
        answer = client.score("196", ["242", "302"], deadline_ms=20)

Requests are checked before they are sent, by the types that the service checks them with, and answers are those types.
Scoring changes nothing, and events, impressions and forgetting change nothing the second time, so that a request is sent once more where
no answer came (no connection, or one that was closed), and where the service had too much to do when it says that it may have less, if
there is time until then: within the client's `timeout_s` and the request's own `deadline_ms`. A request that took too long is not sent
again: its time is gone. Whatever cannot be answered is a `ServiceProblem`, and where nobody answers, a `ServiceUnreachable`.
"""

from srp4ctr.client.calls import ServiceProblem, ServiceUnreachable
from srp4ctr.client.clients import AsyncClient, Client
from srp4ctr.contract.http_types import Event, Impression, UserRequest

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Impression",
    "ServiceProblem",
    "ServiceUnreachable",
    "UserRequest",
]
