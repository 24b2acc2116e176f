"""The edge, as people without our SDK see it; and certificates that change or lie."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.mesh.conftest import Town
from tests.support.mesh import free_ports

from vtryon_mesh.documents import write
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.envoy.sidecar import Sidecar, render_sidecar
from vtryon_mesh.validate import find_envoy

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")


def curl(town: Town, *headers: str) -> subprocess.CompletedProcess[str]:
    picture = base64.b64encode(b"a picture").decode()
    request = {"person": picture, "garments": [picture], "options": {"prompt": "wear it"}}
    return subprocess.run(
        [
            *(BUF, "curl", "--protocol", "grpc", "--schema", ROOT),
            *("--cacert", town.layout.certificates / "ca.crt"),
            *(word for header in headers for word in ("-H", header)),
            *("-d", json.dumps(request)),
            f"https://{town.layout.edge_address}/vtryon.v1.PipelineService/TryOnInline",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_buf_curl_with_a_token(town: Town) -> None:
    done = curl(town, f"authorization: Bearer {town.issuer.token('curl')}")
    assert done.returncode == 0, done.stderr
    for event in ("accepted", "progress", "output", "chunk", "finished"):
        assert f'"{event}"' in done.stdout
    refused = curl(town)
    assert refused.returncode == 8 * grpc.StatusCode.UNAUTHENTICATED.value[0]


def ask(town: Town, path: str, **headers: str) -> tuple[int, str, dict]:
    context = ssl.create_default_context(cafile=str(town.layout.certificates / "ca.crt"))
    request = urllib.request.Request(f"https://{town.layout.edge_address}{path}", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5, context=context)
    with caught.value as answer:
        return answer.code, answer.headers["content-type"], json.loads(answer.read())


async def test_what_envoy_refuses_is_a_problem_in_json(town: Town) -> None:
    status, kind, problem = await asyncio.to_thread(ask, town, "/v1/nowhere")
    assert (status, kind) == (401, "application/problem+json")
    assert problem["status"] == 401
    assert problem["detail"] == "Jwt is missing"
    token = {"authorization": f"Bearer {town.issuer.token('a')}"}
    status, _, problem = await asyncio.to_thread(lambda: ask(town, "/nowhere", **token))
    assert status == 403
    assert problem["request_id"]


async def test_a_renewed_certificate_is_shown_without_a_restart(town: Town) -> None:
    async def shown() -> bytes:
        pem = await asyncio.to_thread(
            ssl.get_server_certificate,
            (town.layout.edge_address.host, town.layout.edge_address.port),
        )
        return pem.encode()

    before = await shown()
    assert town.layout.authority is not None
    town.layout.authority.issue(town.layout.certificates, "edge", town.mesh.identity("edge"))
    async with asyncio.timeout(10):
        while await shown() == before:
            await asyncio.sleep(0.2)
    async with town.client() as client:
        await client.try_on(b"person", b"garment", steps=1)


async def test_a_sidecar_does_not_talk_to_who_is_not_who_it_should_be(
    town: Town, tmp_path: Path
) -> None:
    """Decoding's address given for sampling's: its certificate is good, and another's."""
    admin, inbound, right, wrong = (Address("127.0.0.1", port) for port in free_ports(4))
    host, _, port = town.inbound("decoding").rpartition(":")
    decoding = Address(host, int(port))
    place = Sidecar(
        "pipeline",
        admin=admin,
        application=Address("127.0.0.1", 1),
        inbound=inbound,
        outbound={"decoding": right, "sampling": wrong},
        callees={"decoding": [decoding], "sampling": [decoding]},
        certificates=town.layout.certificates,
    )
    path = tmp_path / "envoy.yaml"
    path.write_text(write(render_sidecar(town.mesh, place)))
    options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
    process = subprocess.Popen([find_envoy(), "-c", path, *options])
    try:
        assert await health(right, "vtryon.v1.DecodingService") is grpc.StatusCode.OK
        assert await health(wrong, "vtryon.v1.SamplingService") is grpc.StatusCode.UNAVAILABLE
    finally:
        process.terminate()
        process.wait(10)


async def health(address: Address, service: str) -> grpc.StatusCode:
    """Ask for up to ten seconds until it is well; gives the last word."""
    code = grpc.StatusCode.UNKNOWN
    for _ in range(20):
        async with grpc.aio.insecure_channel(str(address)) as channel:
            ask = health_pb2.HealthCheckRequest(service=service)
            try:
                await health_pb2_grpc.HealthStub(channel).Check(ask, timeout=2)
            except grpc.aio.AioRpcError as error:
                code = error.code()
            else:
                return grpc.StatusCode.OK
        await asyncio.sleep(0.25)
    return code


DIES = """
import asyncio, os, sys
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

async def die(request, context):
    os.kill(os.getpid(), 9)
    yield b""

async def main():
    server = grpc.aio.server()
    handlers = {"TryOnInline": grpc.unary_stream_rpc_method_handler(die)}
    name = "vtryon.v1.PipelineService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])
    servicer = health.aio.HealthServicer()
    await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


async def test_a_request_that_reached_a_server_is_not_repeated(town: Town, tmp_path: Path) -> None:
    """F11: the server is gone before the first header; the caller gets one clean status."""
    admin, edge_address, *servers = (Address("127.0.0.1", port) for port in free_ports(4))
    log = tmp_path / "access.log"
    place = EdgePlace(admin, edge_address, {"pipeline": servers}, None, None, access_log=log)
    path = tmp_path / "envoy.yaml"
    path.write_text(write(render_edge(town.mesh, place)))
    options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
    processes = [subprocess.Popen([sys.executable, "-c", DIES, str(one.port)]) for one in servers]
    try:
        for one in servers:
            assert await health(one, "vtryon.v1.PipelineService") is grpc.StatusCode.OK
        processes.append(subprocess.Popen([find_envoy(), "-c", path, *options]))
        assert await health(edge_address, "vtryon.v1.PipelineService") is grpc.StatusCode.OK
        async with grpc.aio.insecure_channel(str(edge_address)) as channel:
            call = channel.unary_stream("/vtryon.v1.PipelineService/TryOnInline")(b"", timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.sleep(0.5)
        assert sorted(one.poll() is None for one in processes[:2]) == [False, True]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
