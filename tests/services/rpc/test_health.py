"""Health answers whoever asks, and takes nothing that callers need."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.pictures import png

import vtryon
from vtryon.types import Stage
from vtryon_services.host import host
from vtryon_services.pipeline.settings import PipelineSettings

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
async def target() -> AsyncIterator[str]:
    settings = PipelineSettings.load(
        log_level="error",
        max_health_watches=3,
        max_calls=2,
        drain_grace_seconds=0,
    )
    given = {"backend": "scripted", "first_message_timeout_seconds": 300.0}
    async with host(settings, list(Stage), "127.0.0.1:0", **given) as serving:
        yield serving.address


@pytest.fixture
async def channel(target: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(target) as channel:
        await channel.channel_ready()
        yield channel


async def test_a_health_request_with_a_long_name_is_refused(channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="x" * 3_500_000)
    for call in (stub.Check(request), stub.Watch(request).read()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_watches_are_bounded_and_a_check_answers_beside_them(channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service="unknown")) for _ in range(3)]
    for watch in watches:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    for watch in watches:
        watch.cancel()


async def test_health_takes_no_permit_where_all_are_taken(channel, target) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    silent = [channel.stream_stream("/vtryon.v1.PipelineService/TryOn")() for _ in range(2)]
    async with vtryon.Client(target, retry=False) as client, asyncio.timeout(30):
        with pytest.raises(vtryon.OverloadedError):
            while True:
                await client.try_on(png(), png(), steps=1)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    for call in silent:
        call.cancel()


async def test_a_connection_without_a_handshake_is_closed(target: str) -> None:
    host_name, _, port = target.rpartition(":")
    with socket.create_connection((host_name, int(port))) as silent:
        silent.settimeout(30)

        def read_to_the_end() -> None:
            while silent.recv(4096):
                pass

        await asyncio.to_thread(read_to_the_end)
