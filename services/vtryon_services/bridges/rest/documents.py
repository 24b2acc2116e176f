"""The OpenAPI document's parts that FastAPI can't tell by itself: bodies that the bridge reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from vtryon_services.bridges.rest.examples import EXAMPLES
from vtryon_services.bridges.rest.problems import MEDIA_TYPE, Problem

_REFERENCE = "#/components/schemas/{model}"
SAFETENSORS = "application/octet-stream"
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_OVERLOADED = 429
_REFUSALS = {
    400: "The request is invalid; `violations` names each field, at most the first 20.",
    401: "The edge wants a token.",
    403: "The token does not allow this, or another site's page sent it.",
    404: "It does not exist, or belongs to another tenant.",
    408: "The body did not arrive in time.",
    409: "The idempotency key stands for another request already.",
    413: "More bytes than the limit.",
    415: "A picture that is no PNG, JPEG or WebP.",
    422: "The time that the request allows (`timeout_seconds`, or the default) is over.",
    429: "No room now; `Retry-After` says when to come back.",
    500: "A stage failed; its log has the cause under the request's id.",
    503: "A stage can't be reached, or is going away.",
}

_SEED = "x-vtryon-seed"
IGNORED = "x-vtryon-ignored"
UNUSED = "x-vtryon-unused-options"
DIGESTS = "x-vtryon-model-digests"
_HEADERS = {
    "x-request-id": "What logs and traces call the request.",
    "retry-after": "Seconds after which there may be room.",
    "location": "Where the job is.",
    "preference-applied": "The preference that was honoured.",
    "server-timing": "Milliseconds of each stage.",
    _SEED: "The seed that the picture was drawn with.",
    "x-vtryon-job": "The job that the picture is of.",
    DIGESTS: "The sha256 of the model of each stage that computed: stage=digest, by commas.",
    UNUSED: "Options that were given and changed nothing; JSON and events have the reasons.",
    IGNORED: "Parameters that were given and change nothing here.",
}


def headers_of(*names: str) -> dict[str, Any]:
    """Document response headers, in addition to the request id."""
    return {
        name: {"description": _HEADERS[name], "schema": {"type": "string"}}
        for name in (*names, "x-request-id")
    }


Responses = dict[int | str, dict[str, Any]]
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
PROBLEMS: Responses = {
    status: {
        "description": text,
        "content": _PROBLEM,
        "headers": headers_of(*(("retry-after",) if status == _OVERLOADED else ())),
    }
    for status, text in _REFUSALS.items()
}
_PICTURES = {f"image/{name}": _BYTES for name in ("png", "jpeg", "webp")}
PICTURE: Responses = {
    200: {
        "description": "A picture.",
        "content": _PICTURES,
        "headers": headers_of(DIGESTS, UNUSED),
    },
    **PROBLEMS,
}
TENSORS: Responses = {
    200: {
        "description": "Tensors, as a safetensors file.",
        "content": {SAFETENSORS: _BYTES},
        "headers": headers_of(DIGESTS, UNUSED),
    },
    **PROBLEMS,
}
SAMPLED: Responses = {
    **TENSORS,
    200: {**TENSORS[200], "headers": headers_of(_SEED, DIGESTS, UNUSED)},
}
RESULTS: Responses = {
    200: {
        "description": "What `Accept` asks for. An event stream that does not end with `finished` "
        "or `error` was cut off.",
        "headers": headers_of(_SEED, "x-vtryon-job", "server-timing", DIGESTS, UNUSED),
        "content": {
            **_PICTURES,
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **PROBLEMS,
}
_bodies: dict[str, type[BaseModel]] = {}


def body_of(kinds: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Document a body, by media type, with an example of each."""
    _bodies.update({kind.__name__: kind for kind in kinds.values()})
    content = {
        media_type: {
            "schema": {"$ref": _REFERENCE.format(model=kind.__name__)},
            "example": EXAMPLES[kind.__name__],
        }
        for media_type, kind in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def add_document(app: FastAPI) -> None:
    """Have the app describe all of it at /openapi.json."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            described: list[type[BaseModel]] = [Problem, *_bodies.values()]
            kinds: list[tuple[type[BaseModel], JsonSchemaMode]] = [
                (kind, "validation") for kind in described
            ]
            _, schemas = models_json_schema(kinds, ref_template=_REFERENCE)
            known = document.setdefault("components", {}).setdefault("schemas", {})
            known.update(schemas["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
