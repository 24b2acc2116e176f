"""What the pipeline spends and says: attempts, deadlines, the way that took longest, previews."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import grpc
import pytest
from tests.support.pictures import png

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.events import Accepted, Preview, ResumeChunk, StepFinished
from vtryon.types import EncodedImage, Payload, PayloadKind, Stage, TryOnOptions, TryOnStart
from vtryon.v1 import pipeline_pb2
from vtryon.wire.stream import TRY_ON, StreamCall
from vtryon_services.pipeline import flow as flow_module
from vtryon_services.pipeline.attempts import FailoverPolicy, RetryBudget
from vtryon_services.pipeline.clients import StageClients
from vtryon_services.pipeline.flow import Flow
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.rpc.method import Method
from vtryon_services.rpc.serve import Server

BURST, SHARE, REQUESTS = 20, 0.1, 30


class Away(NamedTuple):
    """A server whose every call is UNAVAILABLE, and what each call had left of its deadline."""

    target: str
    remaining: list[float]


@pytest.fixture
async def away() -> AsyncIterator[Away]:
    remaining: list[float] = []

    async def refuse(_requests: object, context: grpc.aio.ServicerContext) -> None:
        remaining.append(context.time_remaining())
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    handler = grpc.stream_stream_rpc_method_handler(refuse)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "vtryon.v1.LatentEncoderService", {"Encode": handler}
            )
        ]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Away(f"127.0.0.1:{port}", remaining)
    await server.stop(0)


async def test_attempts_beside_the_first_are_a_tenth_of_the_requests_and_a_few(away: Away) -> None:
    settings = {"backend": "scripted", "latent_encoder_target": away.target}
    async with embedded_mesh(**settings) as target, vtryon.Client(target, retry=False) as client:
        runs = [client.try_on(png(), png(), timeout_seconds=50) for _ in range(REQUESTS)]
        said = await asyncio.gather(*runs, return_exceptions=True)
    assert {type(error) for error in said} == {vtryon.UnavailableError}
    others = len(away.remaining) - REQUESTS
    assert BURST <= others <= BURST + SHARE * REQUESTS


async def test_a_stage_is_given_what_is_left_of_the_callers_deadline(away: Away) -> None:
    settings = {"backend": "scripted", "latent_encoder_target": away.target}
    async with embedded_mesh(**settings) as target, vtryon.Client(target, retry=False) as client:
        with pytest.raises(vtryon.UnavailableError):
            await client.try_on(png(), png(), timeout_seconds=8)
    assert 2 <= len(away.remaining) <= 4
    assert max(away.remaining) <= 8
    # gRPC rounds a deadline up on the wire, the coarser the longer it is.
    pauses = sum(0.05 * 4**number for number in range(len(away.remaining) - 1))
    assert away.remaining[-1] < 8 - pauses + 0.2


@pytest.mark.parametrize("slow", [Stage.LATENT_ENCODER, Stage.TEXT_ENCODER])
async def test_the_encoder_that_took_longer_is_the_critical_one(monkeypatch, slow) -> None:
    name = slow.value.upper().replace("-", "_")
    monkeypatch.setenv(f"VTRYON_{name}_SCRIPTED_SECONDS", "1.5")
    async with (
        embedded_mesh(backend="scripted") as target,
        vtryon.Client(target, retry=False) as client,
    ):
        ledger = (await client.try_on(png(), png(), steps=1)).ledger
    encoders = {Stage.LATENT_ENCODER, Stage.TEXT_ENCODER}
    critical = {hop.stage for hop in ledger.hops if hop.critical}
    assert critical & encoders == {slow}


async def test_a_slow_reader_loses_previews_and_no_step() -> None:
    payload = Payload(PayloadKind.PERSON_IMAGE, 1, image=EncodedImage())

    async def nothing() -> AsyncIterator[vtryon.events.Chunk]:
        return
        yield

    flow = Flow(
        StageClients({}),
        TryOnStart((payload,), TryOnOptions()),
        Incoming((payload,), nothing()),
        Call("request", 60.0, timeout_is_default=False),
        FailoverPolicy(RetryBudget(), 1, 0),
    )
    for step in range(1, flow_module._EVENTS_HELD + 1):
        await flow._emit(StepFinished(step, 200, 0.5, 0.1))
    async with asyncio.timeout(10):
        await flow._emit(Preview(1, 200, None))  # waits for nobody
    waiting = asyncio.create_task(flow._emit(StepFinished(200, 200, 0.0, 0.1)))
    kinds = [type(await flow._events.get()) for _ in range(flow_module._EVENTS_HELD + 1)]
    await waiting
    assert kinds == [StepFinished] * (flow_module._EVENTS_HELD + 1)


async def test_a_caller_that_reads_nothing_is_cut_off_and_told_why() -> None:
    """Previews of a resumable request fill what the wire holds, since nobody reads."""
    over = asyncio.Event()

    async def endless(_start: TryOnStart, _incoming: Incoming, call: Call):
        yield Accepted(stage=Stage.PIPELINE, timeout_seconds=60.0, timeout_is_default=False)
        try:
            while True:
                yield ResumeChunk(1, 0, 2**40, bytes(256 * 1024))
        finally:
            over.set()

    assert PipelineSettings().write_timeout_seconds == 30
    settings = PipelineSettings.load(log_level="error", write_timeout_seconds=0.5)
    server = Server(settings)
    target = server.bind("127.0.0.1:0")
    method = Method("TryOn", pipeline_pb2.TryOnRequest, TryOnStart, endless)
    service = Service(Stage.PIPELINE, "vtryon.v1.PipelineService", (method,), settings)
    await server.start([service])
    start = TryOnStart(options=TryOnOptions())
    async with (
        vtryon.Channel(target) as channel,
        StreamCall(channel, TRY_ON, start) as call,
    ):
        events = aiter(call)
        assert isinstance(await anext(events), Accepted)
        async with asyncio.timeout(30):
            await over.wait()
        with pytest.raises(vtryon.UnavailableError, match=r"read nothing for 0\.5 s"):
            async for _ in events:
                pass
    await server.stop()


async def test_a_proxy_of_the_environment_is_not_between_services(away: Away, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody is there
    settings = {"backend": "scripted", "latent_encoder_target": away.target}
    async with embedded_mesh(**settings) as target, vtryon.Client(target, retry=False) as client:
        with pytest.raises(vtryon.UnavailableError):
            await client.try_on(png(), png(), timeout_seconds=20)
    assert away.remaining
