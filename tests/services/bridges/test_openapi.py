"""The OpenAPI document, and schemathesis against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tests.support.pictures import png
from tests.support.processes import served
from tests.support.rest import form_field

from vtryon_services.bridges.rest.app import create_app
from vtryon_services.bridges.rest.settings import RestSettings

SCHEMA = schemathesis.openapi.from_dict(create_app(RestSettings.load()).openapi())
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def served_rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bridge as a process of its own: schemathesis would block the tests' event loop."""
    folder = tmp_path_factory.mktemp("openapi")
    ledger = f"sqlite:///{folder / 'jobs.sqlite'}"
    with (
        served(
            *("all", "jobs", "--backend", "scripted"),
            VTRYON_JOBS_DATABASE_URL=ledger,
            VTRYON_JOBS_ARTIFACTS_URL=str(folder / "artifacts"),
        ) as mesh,
        served("rest", VTRYON_REST_PIPELINE_TARGET=mesh.target) as process,
    ):
        yield f"http://{process.target}"


@SCHEMA.parametrize()
# The same requests each time: some that schemathesis could make end its own generator.
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_document_knows(
    served_rest: str, case: schemathesis.Case
) -> None:
    """Random requests, good and bad: nothing fails inside, nothing is answered unforeseen."""
    response = case.call(base_url=served_rest, timeout=20)
    assert response.status_code != 500
    case.validate_response(response, checks=CHECKS)


def test_the_document_names_everything() -> None:
    document = SCHEMA.raw_schema
    assert set(document["paths"]) == {
        "/v1/try-ons",
        "/v1/stages/latent-encoder",
        "/v1/stages/text-encoder",
        "/v1/stages/sampling",
        "/v1/stages/decoding",
        "/v1/images/edits",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/cancel",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/picture",
        "/healthz",
        "/readyz",
    }
    body = document["components"]["schemas"]["TryOnForm"]["properties"]
    assert body["steps"]["anyOf"][0]["maximum"] == 200
    assert {"person", "garments", "prompt", "seed"} <= set(body)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_the_document_is_served(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200


def post_example(
    http: httpx.Client, path: str, media_type: str, example: dict[str, Any], files: dict[str, bytes]
) -> httpx.Response:
    """Post a body's example; names of files in a form stand for these files."""
    if media_type == "application/json":
        return http.post(path, json=example)
    parts = [
        (name, (one, files[one]))
        for name, value in example.items()
        for one in (value if isinstance(value, list) else [value])
        if one in files
    ]
    sent = {name for name, _ in parts}
    fields = {name: form_field(one) for name, one in example.items() if name not in sent}
    return http.post(path, files=parts, data=fields)


# What a stage answers is the file that the next one's example names.
ANSWERED = {
    "/v1/stages/latent-encoder": "pictures.safetensors",
    "/v1/stages/text-encoder": "embeddings.safetensors",
    "/v1/stages/sampling": "latents.safetensors",
}


def test_every_body_has_an_example_that_is_served(served_rest: str) -> None:
    files = {"person.png": png(), "garment.png": png(colour="firebrick")}
    bodies = [
        (path, media_type, content["example"])
        for path, operations in SCHEMA.raw_schema["paths"].items()
        for operation in operations.values()
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    order = list(ANSWERED)
    bodies.sort(key=lambda body: order.index(body[0]) if body[0] in order else len(order))
    assert len(bodies) == 9
    with httpx.Client(base_url=served_rest, timeout=60) as http:
        for path, media_type, example in bodies:
            answer = post_example(http, path, media_type, example, files)
            assert answer.is_success, (path, media_type, answer.text)
            if path in ANSWERED:
                files[ANSWERED[path]] = answer.content


async def test_the_example_in_json_has_pictures_that_the_model_reads(
    drawing_http: httpx.AsyncClient,
) -> None:
    content = SCHEMA.raw_schema["paths"]["/v1/try-ons"]["post"]["requestBody"]["content"]
    answer = await drawing_http.post("/v1/try-ons", json=content["application/json"]["example"])
    assert answer.is_success, answer.text
    assert answer.headers["content-type"] == "image/png"
