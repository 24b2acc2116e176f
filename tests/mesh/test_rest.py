"""REST through the edge: what is drawn, who is let in, and connections that end too soon."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.mesh.conftest import Town
from tests.support.mesh import free_ports
from tests.support.processes import ServedMesh, served

import vtryon
from vtryon_mesh.description import Mesh
from vtryon_mesh.documents import write
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.validate import find_envoy

FILES = [("person", b"person"), ("garments", b"garment")]
EVENTS = {"accept": "text/event-stream"}
STEP_SECONDS = 0.1


@pytest.fixture
async def web(town: Town) -> AsyncIterator[httpx.AsyncClient]:
    context = ssl.create_default_context(cafile=str(town.layout.certificates / "ca.crt"))
    headers = {"authorization": f"Bearer {town.issuer.token('acme')}"}
    async with httpx.AsyncClient(
        base_url=f"https://{town.edge_address}", verify=context, headers=headers, timeout=30
    ) as client:
        yield client


async def test_a_try_on_and_its_events(web: httpx.AsyncClient) -> None:
    answer = await web.post("/v1/try-ons", files=FILES, data={"steps": 2})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    streamed = await web.post("/v1/try-ons", files=FILES, data={"steps": 3}, headers=EVENTS)
    assert streamed.text.count("event: step_finished") == 3
    assert "event: finished" in streamed.text


async def test_every_stage_alone(web: httpx.AsyncClient) -> None:
    pictures = [("pictures", b"person"), ("pictures", b"garment")]
    texts = await web.post("/v1/stages/text-encoder", files=pictures, data={"prompt": "wear it"})
    latents = await web.post("/v1/stages/latent-encoder", files=pictures)
    files = [("embeddings", texts.content), ("latents", latents.content)]
    sampled = await web.post("/v1/stages/sampling", files=files, data={"steps": 2})
    picture = await web.post("/v1/stages/decoding", files=[("latents", sampled.content)])
    assert picture.status_code == 200, picture.text
    assert picture.headers["content-type"] == "image/png"


async def test_a_job_belongs_to_the_tenant_of_the_token(
    web: httpx.AsyncClient, caller: vtryon.Client, town: Town
) -> None:
    headers = {"prefer": "respond-async", "idempotency-key": "order-7"}
    made = await web.post("/v1/try-ons", files=FILES, data={"steps": 3}, headers=headers)
    assert made.status_code == 202, made.text
    job_id = made.json()["id"]
    ended = await caller.jobs.wait(job_id)
    assert ended.state is vtryon.JobState.SUCCEEDED
    assert (await web.get(f"/v1/jobs/{job_id}/picture")).status_code == 200
    async with town.client(town.issuer.token("somebody-else")) as other:
        with pytest.raises(vtryon.RequestError) as caught:
            await other.jobs.get(job_id)
    assert caught.value.reason is vtryon.Reason.NOT_FOUND


async def test_nobody_comes_in_without_a_token(web: httpx.AsyncClient, town: Town) -> None:
    for word in ("nobody", "Bearer nonsense", f"Bearer {town.issuer.token('')}"):
        headers = {"authorization": word}
        answer = await web.post("/v1/try-ons", files=FILES, headers=headers)
        assert answer.status_code in {401, 403}
        assert answer.headers["content-type"] == "application/problem+json"
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/metrics"):
        assert (await web.get(path)).status_code == 403


async def test_browsers_of_other_origins_are_told_so(web: httpx.AsyncClient) -> None:
    asked = {"access-control-request-method": "POST", "origin": "http://localhost:3000"}
    answer = await web.options("/v1/try-ons", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    other = await web.options("/v1/try-ons", headers={**asked, "origin": "http://elsewhere"})
    assert "access-control-allow-origin" not in other.headers


@dataclass(frozen=True)
class Road:
    """An Envoy, the bridge behind it, and the mesh behind that; one place for sampling."""

    url: str
    rest: ServedMesh
    mesh: ServedMesh


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    with ExitStack() as stack:
        mesh = stack.enter_context(
            served(
                *("all", "--backend", "scripted"),
                VTRYON_SAMPLING_SCRIPTED_SECONDS=str(STEP_SECONDS),
                VTRYON_SAMPLING_MAX_CONCURRENCY="1",
            )
        )
        rest = stack.enter_context(served("rest", VTRYON_REST_PIPELINE_TARGET=mesh.target))
        admin, edge_address = (Address("127.0.0.1", port) for port in free_ports(2))
        places = {"pipeline": [address(mesh.target)], "rest": [address(rest.target)]}
        path = tmp_path / "envoy.yaml"
        path.write_text(
            write(render_edge(Mesh.load(), EdgePlace(admin, edge_address, places, None, None)))
        )
        options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
        envoy = subprocess.Popen([find_envoy(), "-c", path, *options])
        stack.callback(envoy.wait, 10)
        stack.callback(envoy.kill)
        url = f"http://{edge_address}"
        until = time.monotonic() + 20
        while httpx_status(url) != 404:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield Road(url, rest, mesh)


def address(target: str) -> Address:
    host, _, port = target.rpartition(":")
    return Address(host, int(port))


def httpx_status(url: str) -> int:
    try:
        return httpx.get(f"{url}/v1/nowhere").status_code
    except httpx.TransportError:
        return 0


async def until_step(pieces: AsyncIterator[str], step: int) -> str:
    """Read events up to a step."""
    text = ""
    while f'"step": {step},' not in text:
        text += await anext(pieces)
    return text


@pytest.mark.parametrize("accept", ["text/event-stream", "image/png"])
async def test_a_caller_that_drops_its_connection_frees_its_slot(road: Road, accept: str) -> None:
    """F3: within a step and 150 ms, through Envoy and the bridge."""
    data = {"steps": 200}

    async def call() -> None:
        async with (
            httpx.AsyncClient(base_url=road.url, timeout=60) as http,
            http.stream(
                "POST", "/v1/try-ons", files=FILES, data=data, headers={"accept": accept}
            ) as answer,
        ):
            await answer.aread()

    async with vtryon.Client(road.mesh.target) as client:
        caller = asyncio.create_task(call())
        await asyncio.sleep(1)
        waiting = client.try_on(b"person", b"garment", steps=2)
        dropped = stepped = 0.0
        async for event in waiting:
            if isinstance(event, vtryon.Queued):
                caller.cancel()
                await asyncio.gather(caller, return_exceptions=True)
                dropped = time.monotonic()
            if isinstance(event, vtryon.StepFinished) and event.step == 1:
                stepped = time.monotonic()
        # The step under way, its own first one, and what the news takes.
        assert 0 < stepped - dropped < 2 * STEP_SECONDS + 0.15


async def test_a_stream_that_was_cut_off_can_be_told_from_one_that_ended(road: Road) -> None:
    """F12: the bridge is killed behind the first events, and then the pipeline."""
    async with httpx.AsyncClient(base_url=road.url, timeout=60) as http:
        async with http.stream(
            "POST", "/v1/try-ons", files=FILES, data={"steps": 200}, headers=EVENTS
        ) as answer:
            assert answer.status_code == 200
            pieces = answer.aiter_text()
            await until_step(pieces, 3)
            os.kill(road.mesh.process.pid, signal.SIGKILL)
            rest = "".join([piece async for piece in pieces])
        assert "event: error" in rest
        assert "STAGE_UNAVAILABLE" in rest
    with served(
        *("all", "--backend", "scripted"),
        listen=road.mesh.target,
        VTRYON_SAMPLING_SCRIPTED_SECONDS=str(STEP_SECONDS),
    ):
        text = ""
        async with httpx.AsyncClient(base_url=road.url, timeout=60) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                async with http.stream(
                    "POST", "/v1/try-ons", files=FILES, data={"steps": 200}, headers=EVENTS
                ) as answer:
                    pieces = answer.aiter_text()
                    text = await until_step(pieces, 3)
                    os.kill(road.rest.process.pid, signal.SIGKILL)
                    async for piece in pieces:
                        text += piece
        assert "event: step_finished" in text
        assert "event: error" not in text
        assert "event: finished" not in text
