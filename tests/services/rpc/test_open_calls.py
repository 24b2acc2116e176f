"""What callers hold open is bounded: silent streams, declared bytes, names, calls per tenant."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from tests.support.pictures import png

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.types import EncodedImage, Payload, PayloadKind, TryOnOptions, TryOnStart
from vtryon.v1 import pipeline_pb2, pipeline_pb2_grpc
from vtryon.wire.payloads import Assembler
from vtryon_services.rpc.fair_limit import FairLimit

TENANT = "x-vtryon-tenant"


@asynccontextmanager
async def stub(**settings) -> AsyncIterator[tuple[pipeline_pb2_grpc.PipelineServiceStub, str]]:
    async with (
        embedded_mesh(backend="scripted", **settings) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        yield pipeline_pb2_grpc.PipelineServiceStub(channel), target


def start(size: int, kind: PayloadKind = PayloadKind.PERSON_IMAGE) -> pipeline_pb2.TryOnRequest:
    payload = Payload(kind, size, image=EncodedImage())
    return pipeline_pb2.TryOnRequest(start=TryOnStart((payload,), TryOnOptions()).to_proto())


async def ended(call) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(30):
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return await call.code(), await call.details()


async def test_a_stream_without_a_first_message_ends() -> None:
    async with stub(first_message_timeout_seconds=0.2) as (pipeline, _):
        code, words = await ended(pipeline.TryOn())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "first message did not come within 0.2 s" in words


async def test_a_stream_whose_next_chunk_does_not_come_ends() -> None:
    async with stub(chunk_timeout_seconds=0.2) as (pipeline, _):
        call = pipeline.TryOn()
        await call.write(start(100))
        code, words = await ended(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "next chunk did not come within 0.2 s" in words


async def test_of_silent_streams_the_oldest_make_room_for_a_new_call() -> None:
    async with stub(max_silent_calls=4) as (pipeline, target):
        silent = [pipeline.TryOn() for _ in range(8)]
        async with vtryon.Client(target, retry=False) as client, asyncio.timeout(30):
            while sum(call.done() for call in silent) < 5:
                await client.try_on(png(), png(), steps=1)
        codes = {await call.code() for call in silent if call.done()}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for call in silent:
            call.cancel()


async def test_calls_of_one_tenant_are_bounded_and_others_are_served() -> None:
    settings = {"max_calls_per_tenant": 3, "max_silent_calls": 100}
    async with stub(**settings) as (pipeline, target), vtryon.Client(target, retry=False) as client:
        held = []
        async with asyncio.timeout(30):
            while True:
                # One of them is refused where the try-on came first.
                held = [call for call in held if not call.done()]
                while len(held) < 3:
                    held.append(pipeline.TryOn(metadata=[(TENANT, "many")]))
                try:
                    await client.acting_for("many").try_on(png(), steps=1)
                except vtryon.OverloadedError as error:
                    assert "3 calls open" in error.message
                    break
        await client.acting_for("other").try_on(png(), steps=1)
        for call in held:
            call.cancel()


async def test_declared_bytes_of_one_tenant_are_bounded_and_others_are_served() -> None:
    settings = {"max_declared_bytes_per_tenant": 25 * 2**20}
    async with stub(**settings) as (pipeline, target), vtryon.Client(target, retry=False) as client:
        first, second = (pipeline.TryOn(metadata=[(TENANT, "many")]) for _ in range(2))
        await first.write(start(20 * 2**20))
        assert (await first.read()).WhichOneof("event") == "accepted"
        await second.write(start(20 * 2**20))
        code, words = await ended(second)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bytes of payloads declared" in words
        await client.acting_for("other").try_on(png(), steps=1)
        first.cancel()


def test_a_declared_payload_takes_no_memory_before_its_bytes_come() -> None:
    sizes = (4 * 2**20 - 1, 20 * 2**20)
    payloads = [Payload(PayloadKind.IMAGE, size, image=EncodedImage()) for size in sizes]
    assembler = Assembler(payloads)
    assert [len(buffer) for buffer in assembler.buffers] == [0, 0]
    assembler.add(vtryon.events.Chunk(0, 0, b"abc"))
    assembler.add(vtryon.events.Chunk(0, 3, b"de"))
    assert bytes(assembler.buffers[0]) == b"abcde"
    assembler.add(vtryon.events.Chunk(1, 0, b"abc"))
    assert (len(assembler.buffers[1]), bytes(assembler.buffers[1][:3])) == (sizes[1], b"abc")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (TENANT, "x" * 256),
        (TENANT, "two words "),
        ("x-request-id", "x" * 256),
        ("x-request-id", "two words"),
        ("x-vtryon-content-digest", "x" * 256),
    ],
)
async def test_a_name_that_is_not_one_is_refused_and_never_shortened(key, value) -> None:
    async with stub() as (pipeline, _):
        call = pipeline.TryOnInline(pipeline_pb2.TryOnInlineRequest(), metadata=[(key, value)])
        code, words = await ended(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert key in words


async def test_a_tenant_named_twice_is_refused() -> None:
    async with stub() as (pipeline, _):
        names = [(TENANT, "one"), (TENANT, "two")]
        code, words = await ended(
            pipeline.TryOnInline(pipeline_pb2.TryOnInlineRequest(), metadata=names)
        )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "comes twice" in words


def test_a_full_limit_refuses_who_holds_most_and_lets_a_newcomer_in() -> None:
    limit = FairLimit("test", "things", 10, per_tenant=100)
    with limit.holding("greedy", 10):
        with pytest.raises(vtryon.OverloadedError), limit.holding("greedy"):
            pass
        with limit.holding("modest", 5):
            assert limit.held == 15
            with pytest.raises(vtryon.OverloadedError), limit.holding("modest"):
                pass
    assert limit.held == 0


def test_callers_without_a_tenant_share_the_limit_of_the_process() -> None:
    limit = FairLimit("test", "things", 10, per_tenant=2)
    with limit.holding("", 10), pytest.raises(vtryon.OverloadedError), limit.holding(""):
        pass
