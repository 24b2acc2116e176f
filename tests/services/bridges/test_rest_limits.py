"""One caller can't stop others: permits, uploads, names, origins, connections, metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from tests.services.bridges.conftest import Bridge
from tests.support.bad_input import PICTURE
from tests.support.mesh import free_ports
from tests.support.processes import ServedMesh, served

FILES = [("person", PICTURE), ("garments", PICTURE)]
FORM = {"content-type": "multipart/form-data; boundary=x"}
TENANT = "x-vtryon-tenant"


@asynccontextmanager
async def raw(http: httpx.AsyncClient) -> AsyncIterator[tuple]:
    """A connection to the bridge, byte by byte."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(path: str = "/v1/try-ons", **headers: object) -> bytes:
    lines = {"host": "127.0.0.1", **headers}
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{named}\r\n".encode()


async def first_line(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(20):
        return (await reader.readline()).decode()


async def test_bodies_on_their_way_take_no_permit(bridge: Bridge) -> None:
    async with bridge(max_requests=2) as http, AsyncExitStack() as stack:
        for _ in range(10):
            _, writer = await stack.enter_async_context(raw(http))
            writer.write(head(content_length=1000, content_type="application/json") + b"{")
            await writer.drain()
        answer = await http.post("/v1/try-ons", files=FILES, data={"steps": 1})
        assert answer.status_code == 200, answer.text


async def test_a_caller_has_so_many_bodies_on_their_way(bridge: Bridge) -> None:
    async with bridge(max_uploads_per_caller=3) as http, AsyncExitStack() as stack:
        for _ in range(3):
            _, writer = await stack.enter_async_context(raw(http))
            own = {TENANT: "slow", "content-length": 1000, "content-type": "application/json"}
            writer.write(head(**own) + b"{")

        async def refused() -> bool:
            slow = await http.post("/v1/try-ons", content=b"{}", headers={TENANT: "slow"})
            return slow.status_code == 429

        async with asyncio.timeout(20):
            while not await refused():
                await asyncio.sleep(0.01)
        good = await http.post(
            "/v1/try-ons", files=FILES, data={"steps": 1}, headers={TENANT: "good"}
        )
        assert good.status_code == 200, good.text


async def test_bodies_on_their_way_do_not_hold_a_drain(bridge: Bridge) -> None:
    async with asyncio.timeout(60), AsyncExitStack() as connections:
        settings = {
            "max_uploads_per_caller": 1,
            "drain_grace_seconds": 600,
            "body_grace_seconds": 500,
        }
        async with bridge(**settings) as http:
            reader, writer = await connections.enter_async_context(raw(http))
            writer.write(head(content_length=1000, content_type="application/json") + b"{")
            while (await http.post("/v1/try-ons", content=b"{}")).status_code != 429:
                await asyncio.sleep(0.01)
        assert "503" in await first_line(reader)


async def test_a_slow_body_ends_with_408(bridge: Bridge) -> None:
    settings = {"body_grace_seconds": 0.2, "body_min_bytes_per_second": 1_000_000}
    async with bridge(**settings) as http, raw(http) as (reader, writer):
        writer.write(head(content_length=1_000_000, content_type="application/json") + b"{")
        assert "408" in await first_line(reader)


async def test_a_body_over_the_time_limit_ends_although_it_goes_on(bridge: Bridge) -> None:
    settings = {"body_timeout_seconds": 0.3, "body_min_bytes_per_second": 1}
    async with bridge(**settings) as http, raw(http) as (reader, writer):
        writer.write(head(content_length=1_000_000, content_type="application/json"))

        async def trickle() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        try:
            assert "408" in await first_line(reader)
        finally:
            task.cancel()


async def test_twenty_bodies_without_a_length_are_taken_at_once(bridge: Bridge) -> None:
    body = json.dumps({"steps": 0}).encode()

    async def pieces():
        yield body

    async with bridge(max_bodies_bytes=64 * 1024) as http:
        headers = {"content-type": "application/json"}
        many = [http.post("/v1/try-ons", content=pieces(), headers=headers) for _ in range(20)]
        codes = {one.status_code for one in await asyncio.gather(*many)}
    assert codes == {400}  # each was read: its fields do not hold


async def test_only_routes_with_files_take_large_bodies(jobs_http: httpx.AsyncClient) -> None:
    answer = await jobs_http.post("/v1/jobs/none/cancel", content=b"x" * 100_000)
    assert (answer.status_code, answer.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_refusal_reaches_a_caller_that_still_sends(bridge: Bridge) -> None:
    async with bridge(max_body_bytes=1000) as http:
        for _ in range(5):
            answer = await http.post("/v1/try-ons", content=b"x" * 8_000_000, headers=FORM)
            assert answer.status_code == 413


@asynccontextmanager
async def served_now(http: httpx.AsyncClient, tenant: str = "") -> AsyncIterator[None]:
    """A request that holds its permit: its first event has come."""
    headers = {"accept": "text/event-stream", **({TENANT: tenant} if tenant else {})}
    how = {"files": FILES, "data": {"steps": 200}, "headers": headers}
    async with http.stream("POST", "/v1/try-ons", **how) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_raw()  # a forgotten iterator would close the response
        await anext(pieces)
        yield


async def test_one_tenant_leaves_permits_to_others(bridge: Bridge) -> None:
    async with (
        bridge(max_requests=3, max_requests_per_tenant=1) as http,
        served_now(http, "greedy"),
    ):
        refused = await http.post("/v1/try-ons", content=b"{}", headers={TENANT: "greedy"})
        assert (refused.status_code, refused.json()["reason"]) == (429, "QUEUE_FULL")
        other = await http.post("/v1/try-ons", content=b"{}", headers={TENANT: "other"})
        assert other.status_code == 400  # it was let in, and its body is no form


async def test_health_and_readiness_cost_no_permit(bridge: Bridge) -> None:
    async with bridge(max_requests=1) as http, served_now(http):
        assert (await http.post("/v1/try-ons", content=b"{}")).status_code == 429
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.post("/v1/try-ons", content=b"{}")).status_code == 429  # still held


async def test_readiness_is_asked_once_for_all(bridge: Bridge, monkeypatch) -> None:
    from vtryon_services.bridges.rest.readiness import Readiness

    asked = 0
    ask = Readiness._ask

    async def counted(self: Readiness) -> str:
        nonlocal asked
        asked += 1
        return await ask(self)

    monkeypatch.setattr(Readiness, "_ask", counted)
    async with bridge() as http:
        answers = await asyncio.gather(*(http.get("/readyz") for _ in range(20)))
    assert {one.status_code for one in answers} == {200}
    assert asked < 20


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:8000", 404), ("127.0.0.1", 404), ("[::1]:8000", 404), ("rest", 404)),
        *(("shop.example", 404), ("evil.example:8000", 400), ("localhost.evil.example", 400)),
        ("127.0.0.1.evil.example", 400),
    ],
)
async def test_names_that_are_not_the_servers_are_refused(
    bridge: Bridge, host: str, status: int
) -> None:
    async with bridge(allowed_hosts="localhost, shop.example") as http:
        assert (await http.get("/v1/none", headers={"host": host})).status_code == status
        assert (await http.get("/healthz", headers={"host": host})).status_code == 200


FOREIGN = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (FOREIGN, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://localhost.evil.example"}, 403),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "cross-site"}, 200),
        ({**FOREIGN, TENANT: "acme"}, 200),
        ({}, 200),
    ],
)
async def test_forms_of_other_sites_are_refused(
    http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await http.post("/v1/try-ons", files=FILES, data={"steps": 1}, headers=headers)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["reason"] == "PERMISSION_DENIED"


async def test_pages_of_allowed_origins_may_use_every_route(bridge: Bridge) -> None:
    origin = "https://shop.example"
    async with bridge(cors_origins=origin) as http:
        asked = {
            "origin": origin,
            "access-control-request-method": "DELETE",
            "access-control-request-headers": "last-event-id, idempotency-key, prefer",
        }
        allowed = await http.options("/v1/jobs/some", headers=asked)
        assert allowed.status_code == 200
        assert "DELETE" in allowed.headers["access-control-allow-methods"]
        answer = await http.post(
            "/v1/try-ons", files=FILES, data={"steps": 1}, headers={"origin": origin}
        )
        assert answer.headers["access-control-allow-origin"] == origin
        assert "x-vtryon-seed" in answer.headers["access-control-expose-headers"]
        refused = await http.options("/v1/try-ons", headers={**asked, "origin": "http://localhost"})
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    "tenant", ["Müller".encode(), "Müller".encode("latin-1"), b"x" * 256, b"a\tb"]
)
@pytest.mark.parametrize("path", ["/v1/try-ons", "/v1/jobs"])
async def test_a_tenant_that_is_none_is_the_callers_mistake(
    jobs_http: httpx.AsyncClient, tenant: bytes, path: str
) -> None:
    answer = await jobs_http.post(path, files=FILES, headers={TENANT: tenant})
    assert answer.status_code == 400
    assert [one["field"] for one in answer.json()["violations"]] == [TENANT]


async def test_an_idempotency_key_that_is_none_is_named(jobs_http: httpx.AsyncClient) -> None:
    for key in ("Müller".encode(), b"with space", b"x" * 129):
        answer = await jobs_http.post("/v1/jobs", files=FILES, headers={"idempotency-key": key})
        fields = [one["field"] for one in answer.json()["violations"]]
        assert (answer.status_code, fields) == (400, ["header.idempotency-key"])


async def test_a_failure_inside_keeps_the_connection_for_others(
    bridge: Bridge, monkeypatch
) -> None:
    """A proxy sends several callers' requests on one connection."""
    from vtryon_services.bridges.rest import try_ons

    async def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(try_ons, "read_try_on", broken)
    async with bridge() as http, raw(http) as (reader, writer):
        for _ in range(3):
            writer.write(head(content_length=0))
            assert "500" in await first_line(reader)
            headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert "connection: close" not in headers
            length = int(headers.partition("content-length: ")[2].partition("\r")[0])
            assert json.loads(await reader.readexactly(length))["reason"] == "STAGE_FAILED"


async def test_headers_that_do_not_come_end_the_connection(bridge: Bridge) -> None:
    async with bridge(header_timeout_seconds=0.2) as http:
        async with raw(http) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nx-slow: ")
            async with asyncio.timeout(20):
                assert await closed(reader)
        async with raw(http) as (reader, writer):  # the second request of a connection
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert "200" in await first_line(reader)
            writer.write(b"GET /healthz HTTP/1.1\r\nx-slow: ")
            async with asyncio.timeout(20):
                while not await closed(reader):
                    pass


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return not await reader.read(65536)
    except ConnectionResetError:
        return True


async def test_connections_over_the_limit_are_closed_at_once(bridge: Bridge) -> None:
    async with bridge(max_connections=3) as http, AsyncExitStack() as stack:
        for _ in range(3):
            _, writer = await stack.enter_async_context(raw(http))
            writer.write(b"GET ")
        reader, _ = await stack.enter_async_context(raw(http))
        async with asyncio.timeout(20):
            assert await closed(reader)


def test_what_callers_make_up_becomes_no_series(served_mesh: ServedMesh) -> None:
    page = f"127.0.0.1:{free_ports(1)[0]}"
    with (
        served(
            "rest",
            VTRYON_REST_PIPELINE_TARGET=served_mesh.target,
            VTRYON_REST_PROMETHEUS_LISTEN=page,
        ) as rest,
        httpx.Client(base_url=f"http://{rest.target}", timeout=30) as http,
    ):

        def series() -> set[str]:
            lines = httpx.get(f"http://{page}/metrics").text.splitlines()
            return {line.rpartition(" ")[0] for line in lines if line.startswith("http_server")}

        def ask(number: int) -> None:
            headers = {TENANT: f"t{number}", "user-agent": f"u{number}", "host": f"h{number}"}
            method = "GET" if number % 2 else f"M{number}"
            http.request(method, f"/v1/made-up-{number}", headers=headers)
            http.get(f"/v1/jobs/{number}", headers=headers)

        for number in range(4):
            ask(number)
        before = series()
        for number in range(40):
            ask(number)
        assert before
        assert series() == before
        assert any('http_route="/v1/jobs/{job_id}"' in line for line in before)


async def test_a_deadline_of_the_caller_is_no_failure_of_the_server(
    http: httpx.AsyncClient,
) -> None:
    started = time.monotonic()
    data = {"steps": 200, "timeout_seconds": 0.0001}
    answer = await http.post("/v1/try-ons", files=FILES, data=data)
    assert (answer.status_code, answer.json()["reason"]) == (422, "DEADLINE_PASSED")
    assert time.monotonic() - started < 20


async def test_bodies_of_a_caller_have_a_rate(bridge: Bridge) -> None:
    """A burst of a second's worth is taken at once; what is over it waits."""
    large = {"person": PICTURE + b"\0" * 700_000}

    async def seconds_of(http: httpx.AsyncClient, tenant: str) -> float:
        started = time.monotonic()
        form, headers = {"steps": "1"}, {TENANT: tenant}
        answer = await http.post("/v1/try-ons", files=large, data=form, headers=headers)
        assert answer.status_code == 200, answer.text
        return time.monotonic() - started

    async with bridge(body_max_bytes_per_second=1_000_000) as http:
        first, second, third = [await seconds_of(http, "much") for _ in range(3)]
        assert third > max(first, second, 0.2)
        assert await seconds_of(http, "little") < third
