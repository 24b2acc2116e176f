"""What one caller can take of the edge: connections, time, health checks, names and ejections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.mesh.conftest import Town
from tests.mesh.gates import Gate, gate_of
from tests.support.envoy import running_envoy
from tests.support.mesh import free_ports

import vtryon
from vtryon_mesh.envoy.browsers import METHODS, REQUEST_HEADERS, RESPONSE_HEADERS
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address, Config
from vtryon_services.bridges.rest.app import create_app
from vtryon_services.bridges.rest.settings import RestSettings

FILES = [("person", b"person"), ("garments", b"garment")]
PIPELINE = "vtryon.v1.PipelineService"


@pytest.fixture(scope="module")
def gate(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    limits = {
        "connections_burst": 60,
        "connections_per_second": 30,
        "handshake": 1,
        "idle": 1,
        "request_headers": 1,
        "request": 2,
        "health_per_second": 5,
    }
    folder = tmp_path_factory.mktemp("gate")
    with gate_of(town, folder, limits, requests_per_second=60) as gate:
        yield gate


@pytest.fixture(scope="module")
def plain(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """An edge with the limits that callers meet."""
    with gate_of(town, tmp_path_factory.mktemp("plain")) as gate:
        yield gate


def rest_of(connection: socket.socket) -> bytes:
    """Read until the other side closes; a timeout of the socket fails."""
    data = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while piece := connection.recv(65536):
            data += piece
    return data


def test_a_connection_without_a_handshake_is_closed(gate: Gate) -> None:
    address = (gate.edge_address.host, gate.edge_address.port)
    with socket.create_connection(address, timeout=20) as silent:
        assert rest_of(silent) == b""


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_connection_without_a_request_is_closed(gate: Gate, protocol: str) -> None:
    with gate.connect(protocol) as idle:
        rest_of(idle)


def test_headers_that_do_not_end_are_answered_with_408(gate: Gate) -> None:
    with gate.connect() as slow:
        slow.sendall(b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        assert b" 408 " in rest_of(slow)


def began(gate: Gate, length: int) -> bytes:
    return (
        "POST /v1/try-ons HTTP/1.1\r\nhost: localhost\r\n"
        f"authorization: Bearer {gate.town.issuer.token('slow')}\r\n"
        "content-type: multipart/form-data; boundary=b\r\n"
        f"content-length: {length}\r\n\r\n--b\r\n"
    ).encode()


@pytest.mark.parametrize("length", [5000, 5_000_000])
def test_a_body_that_does_not_end_is_answered_with_408(gate: Gate, length: int) -> None:
    with gate.connect() as slow:
        slow.sendall(began(gate, length))
        assert b" 408 " in rest_of(slow)


async def test_small_bodies_take_no_place_of_rest_until_they_are_whole(plain: Gate) -> None:
    """More of them than REST serves at once."""
    count = RestSettings.model_fields["max_requests"].default + 6
    reached = "cluster.rest.upstream_rq_active"
    with contextlib.ExitStack() as held:
        for _ in range(count):
            slow = held.enter_context(await asyncio.to_thread(plain.connect))
            slow.sendall(began(plain, 5000))
        async with plain.web() as web:
            assert (await web.get("/v1/jobs?page_size=1")).status_code == 200
        assert plain.figures("downstream_rq_active$")["http.edge.downstream_rq_active"] == count
        assert plain.figures(f"^{reached}$")[reached] == 0


async def test_silent_connections_keep_nobody_out(gate: Gate) -> None:
    """Many more than the edge accepts in a second: most are closed when they are accepted."""
    address = (gate.edge_address.host, gate.edge_address.port)
    limited = "listener_local_ratelimit.edge_connections.rate_limited"
    with contextlib.ExitStack() as held:
        for _ in range(300):
            held.enter_context(socket.create_connection(address, timeout=20))
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(vtryon.VtryonError):
                    async with gate.client() as client:
                        await client.try_on(b"person", b"garment", steps=1)
                        break
        assert gate.figures("rate_limited$")[limited] > 100


async def checked(channel: grpc.aio.Channel, service: str = PIPELINE) -> grpc.StatusCode:
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def watched(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> grpc.StatusCode:
    request = health_pb2.HealthCheckRequest(service=PIPELINE)
    call = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=10, metadata=metadata)
    return await call.code()


async def test_health_is_checked_without_a_token_and_watched_by_nobody(town: Town) -> None:
    async with town.channel(town.edge_address, None) as channel:
        assert await checked(channel) is grpc.StatusCode.OK
        assert await watched(channel) is grpc.StatusCode.UNAUTHENTICATED
        token = f"Bearer {town.issuer.token('acme')}"
        code = await watched(channel, ("authorization", token))
        assert code is grpc.StatusCode.UNIMPLEMENTED  # by which clients stop asking


async def test_a_large_health_check_does_not_reach_a_service(gate: Gate) -> None:
    total = "cluster.health.upstream_rq_total"
    async with gate.channel() as channel:
        await asyncio.sleep(1)  # until a check is let through again
        before = gate.figures(f"^{total}$")[total]
        assert await checked(channel, "x" * 100_000) is not grpc.StatusCode.OK
        assert gate.figures(f"^{total}$")[total] == before


async def test_health_checks_take_nothing_of_what_callers_may_ask(gate: Gate) -> None:
    """Many more health checks than all callers together may ask for in a second."""
    async with gate.channel() as channel, gate.client() as client:
        codes = await asyncio.gather(*(checked(channel) for _ in range(200)))
        await client.try_on(b"person", b"garment", steps=1)
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert gate.figures("edge.http_local_rate_limit.rate_limited$") == {
        "edge.http_local_rate_limit.rate_limited": 0
    }


GOOD_NAMES = [
    "acme",
    "a",
    "ac me",
    "acme,other",
    '"acme"',
    "https://id.example/realms/x",
    "a" * 255,
]
BAD_NAMES = ["acme ", " acme", "acme\t", "acme\n", "acme\0", "acmé", "ａcme", "  ", "", "a" * 256]


@pytest.mark.parametrize("name", GOOD_NAMES)
async def test_a_tenants_name_of_printable_ascii_is_served(town: Town, name: str) -> None:
    async with town.client(town.issuer.token(name)) as client:
        await client.jobs.page()


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_tenants_name_that_a_hop_could_change_is_refused(town: Town, name: str) -> None:
    async with town.client(town.issuer.token(name)) as client:
        with pytest.raises(vtryon.AccessError):
            await client.jobs.page()


async def test_what_a_caller_asks_puts_no_replica_aside(plain: Gate) -> None:
    """Deadlines that can't be met, by gRPC and by REST, of both replicas of the pipeline."""
    token = ("authorization", f"Bearer {plain.town.issuer.token('hasty')}")

    async def silent(channel: grpc.aio.Channel, seconds: float) -> None:
        method = f"/{PIPELINE}/TryOn"
        call = channel.stream_stream(method)(metadata=[token], timeout=seconds)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.read()

    async with plain.channel() as channel, plain.web("hasty") as web:
        for seconds in (0.005, 0.3):
            await asyncio.gather(*(silent(channel, seconds) for _ in range(16)))
        asked = [
            web.post("/v1/try-ons", files=FILES, data={"timeout_seconds": "0.001"})
            for _ in range(16)
        ]
        answers = await asyncio.gather(*asked)
    assert not [one.text for one in answers if one.status_code in {200, 503}]
    await asyncio.sleep(1.5)  # Envoy looks at its detectors every second
    ejections = plain.figures("outlier_detection.ejections_enforced_total$")
    assert set(ejections.values()) == {0}


def local_edge(town: Town, folder: Path, **changes: object) -> tuple[Config, Address]:
    """An edge without TLS and tokens, as of `vtryon up` on a person's machine."""
    mesh = town.mesh.model_copy(update={"edge": town.mesh.edge.model_copy(update=changes)})
    admin, edge_address = (Address("127.0.0.1", port) for port in free_ports(2))
    services = {"rest": town.layout.replicas["rest"]}
    config = render_edge(
        mesh, EdgePlace(admin, edge_address, services, town.layout.certificates, jwks=None)
    )
    return config, edge_address


async def test_without_tokens_the_edge_has_no_names_but_its_own(town: Town, tmp_path: Path) -> None:
    """A page whose name is made to point at this machine reads nothing (DNS rebinding)."""
    config, edge_address = local_edge(town, tmp_path, hosts=("try-on.example.com",))
    with running_envoy(config, tmp_path):
        async with httpx.AsyncClient(base_url=f"http://{edge_address}", timeout=30) as web:

            async def asked(host: str) -> int:
                return (await web.get("/v1/jobs", headers={"host": host})).status_code

            assert await asked(str(edge_address)) == 200
            assert await asked("localhost:9") == 200
            assert await asked("try-on.example.com") != 421
            assert await asked("evil.example:8080") == 421
            assert await asked("localhost.evil.example") == 421


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 503)])
async def test_a_read_that_a_closing_connection_cuts_off_is_repeated(
    town: Town, tmp_path: Path, method: str, status: int
) -> None:
    """A server of HTTP/1.1 closes as it likes; what changes something is not sent twice."""
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /healthz"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    continue
                seen += 1
                if seen == 1:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    behind = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    admin, edge_address = (Address("127.0.0.1", port) for port in free_ports(2))
    config = render_edge(town.mesh, EdgePlace(admin, edge_address, {"rest": [behind]}, None, None))
    async with server:
        envoy = running_envoy(config, tmp_path)
        await asyncio.to_thread(envoy.__enter__)  # it asks this loop's server for its health
        try:
            async with httpx.AsyncClient(base_url=f"http://{edge_address}", timeout=30) as web:
                answer = await web.request(method, "/v1/jobs")
        finally:
            envoy.__exit__(None, None, None)
    assert answer.status_code == status
    assert seen == (2 if method == "GET" else 1)


def test_browsers_may_use_all_that_rest_offers() -> None:
    """Methods, headers of requests and headers of answers, as REST's own document has them."""
    paths = create_app(RestSettings()).openapi()["paths"]
    operations = [
        (method, one) for path in paths.values() for method, one in path.items() if method in HTTP
    ]
    headers = {
        given["name"].lower()
        for _, one in operations
        for given in one.get("parameters", ())
        if given["in"] == "header"
    }
    answered = {
        name.lower()
        for _, one in operations
        for answer in one["responses"].values()
        for name in answer.get("headers", ())
    }
    assert {method.upper() for method, _ in operations} <= set(METHODS)
    assert headers - {"x-vtryon-tenant"} <= set(REQUEST_HEADERS)
    assert answered <= {*RESPONSE_HEADERS, *SAFELISTED}
    assert {"last-event-id", "idempotency-key", "prefer"} <= headers
    # Set by code and in no document.
    assert {"x-vtryon-job", "x-vtryon-seed", "retry-after"} <= set(RESPONSE_HEADERS)


HTTP = {"get", "post", "put", "patch", "delete"}
# Readable by every page: fetch.spec.whatwg.org, CORS-safelisted response-header name.
SAFELISTED = {"cache-control", "content-language", "content-length", "content-type", "expires"}
