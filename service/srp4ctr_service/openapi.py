"""The OpenAPI document. `python -m srp4ctr_service.openapi` prints it, for docs/openapi.json."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from srp4ctr.contract.http_types import (
    BatchRequest,
    BatchResponse,
    EventsRequest,
    EventsResponse,
    Forgotten,
    ImpressionsRequest,
    ImpressionsResponse,
    ModelInfo,
    Problem,
    RankRequest,
    RankResponse,
    Readiness,
    ScoreRequest,
    ScoreResponse,
)
from srp4ctr_service.formats import MSGPACK
from srp4ctr_service.problems import BY_ERROR, INTERNAL, MEDIA_TYPE

BINARY = MSGPACK.media_type.decode()
_REFERENCE = "#/components/schemas/{model}"


class DocumentedApp(FastAPI):
    """An app whose document has the schemas that plain routes refer to."""

    def openapi(self) -> dict[str, Any]:
        """The document."""
        document = super().openapi()
        models: tuple[tuple[type[BaseModel], JsonSchemaMode], ...] = (
            (ScoreRequest, "validation"),
            (RankRequest, "validation"),
            (BatchRequest, "validation"),
            (ScoreResponse, "serialization"),
            (RankResponse, "serialization"),
            (BatchResponse, "serialization"),
            (EventsRequest, "validation"),
            (ImpressionsRequest, "validation"),
            (EventsResponse, "serialization"),
            (ImpressionsResponse, "serialization"),
            (Forgotten, "serialization"),
            (ModelInfo, "serialization"),
            (Readiness, "serialization"),
            (Problem, "serialization"),
        )
        _, found = models_json_schema(models, ref_template=_REFERENCE)
        components = document.setdefault("components", {})
        components["schemas"] = found["$defs"]
        components["securitySchemes"] = {
            "apiKey": {
                "type": "http",
                "scheme": "bearer",
                "description": "where the service has keys: SRP4CTR_API_KEYS_FILE",
            }
        }
        document["security"] = [{}, {"apiKey": []}]
        return document


def answers(
    model: type[BaseModel] | None = None,
    media_types: Sequence[str] = ("application/json",),
    problems: tuple[int, ...] = (),
) -> dict[int | str, dict[str, Any]]:
    """Responses of a plain route: 200 with the model's schema, and the problems with these statuses."""
    kinds = [INTERNAL, *(kind for _, kind in BY_ERROR)]
    schema = {"type": "string"} if model is None else {"$ref": _REFERENCE.format(model=model.__name__)}
    content = {one: {"schema": schema} for one in media_types}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "OK", "content": content}}
    for status in problems:
        title = next(kind.title for kind in kinds if kind.status == status)
        content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model=Problem.__name__)}}}
        responses[status] = {"description": title, "content": content}
    return responses


_EXAMPLE = {"user_id": "196", "item_ids": ["242", "302", "377"]}
_EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    ScoreRequest: {**_EXAMPLE, "deadline_ms": 100},
    RankRequest: {**_EXAMPLE, "top_k": 2},
    BatchRequest: {"requests": [_EXAMPLE, {**_EXAMPLE, "user_id": "186"}]},
    EventsRequest: {
        "events": [
            {"user_id": "196", "item_id": "242", "event_id": "e-1", "timestamp_ms": 1_700_000_000_000},
        ]
    },
    ImpressionsRequest: {
        "impressions": [
            {
                "request_id": "r-1",
                "user_id": "196",
                "item_ids": ["242"],
                "timestamp_ms": 1_700_000_000_000,
            },
        ]
    },
}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a path, with an example that every model can score."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    content = {
        "application/json": {"schema": schema, "example": _EXAMPLES[model]},
        BINARY: {"schema": schema},
    }
    return {"requestBody": {"required": True, "content": content}}


def main() -> None:
    """Print the document of an app with default settings."""
    from srp4ctr_service.app import document_app

    print(json.dumps(document_app().openapi(), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
