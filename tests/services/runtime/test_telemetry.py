"""Traces arrive at a real OTLP receiver, and neither they nor the logs say what was asked for."""

import asyncio
import base64

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from tests.support.pictures import png
from tests.support.processes import served

import vtryon

CANARY = "a prompt that nobody may ever read in a log"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    async def Export(self, request, context):  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
async def receiver():
    server = grpc.aio.server()
    receiver = Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield receiver
    await server.stop(0)


async def test_one_trace_per_request_whatever_its_outcome(receiver) -> None:
    def run() -> tuple[str, object]:
        return served(
            *("all", "--backend", "scripted", "--profile", "production"),
            VTRYON_OTLP_ENDPOINT=f"127.0.0.1:{receiver.port}",
            VTRYON_SCRIPTED_SECONDS="0.02",
        )

    picture = png()
    context = run()
    process = await asyncio.to_thread(context.__enter__)
    async with vtryon.Client(process.target) as client:
        await client.try_on(picture, picture, CANARY, steps=2)
        with pytest.raises(vtryon.RequestError):
            await client.try_on(picture, picture, CANARY, steps=0)
        with pytest.raises(vtryon.DeadlineError):
            await client.try_on(picture, picture, CANARY, steps=200, timeout_seconds=0.4)
        async for event in client.try_on(picture, picture, CANARY, steps=200):
            if isinstance(event, vtryon.StepFinished):
                break
    await asyncio.to_thread(context.__exit__, None, None, None)

    front = [span for span in receiver.spans if span.name.endswith("PipelineService/TryOn")]
    servers = [span for span in front if span.kind == span.SPAN_KIND_SERVER]
    assert len(servers) == 4
    for span in servers:
        inside = [other for other in receiver.spans if other.trace_id == span.trace_id]
        names = {other.name for other in inside}
        if dict_of(span)["rpc.grpc.status_code"] == grpc.StatusCode.OK.value[0]:
            assert {
                "vtryon.v1.LatentEncoderService/Encode",
                "vtryon.v1.TextEncoderService/Encode",
                "vtryon.v1.SamplingService/Sample",
                "vtryon.v1.DecodingService/Decode",
            } <= names
    codes = {dict_of(span)["rpc.grpc.status_code"] for span in servers}
    assert codes == {
        code.value[0]
        for code in (
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
        )
    }

    log = "".join(process.log)
    said = log + "".join(str(request) for request in receiver.requests)
    assert "INVALID_ARGUMENT" in log
    assert CANARY not in said
    assert base64.b64encode(picture)[:40].decode() not in said


def dict_of(span) -> dict[str, int]:
    return {item.key: item.value.int_value for item in span.attributes}
