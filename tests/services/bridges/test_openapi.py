"""The OpenAPI document, and schemathesis against it."""

from __future__ import annotations

from collections.abc import Iterator

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
from tests.support.processes import served

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
    ledger = f"sqlite+aiosqlite:///{folder / 'jobs.sqlite'}"
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
