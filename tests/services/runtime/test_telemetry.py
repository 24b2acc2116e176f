"""Traces and metrics arrive at a real OTLP receiver; nothing says what was asked for."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme
from tests.support.otlp import otlp_receiver
from tests.support.pictures import png
from tests.support.processes import ServedMesh, served

import vtryon

# What a server sends while it runs is waited for: at its end it sends what it can in a few seconds.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
CANARY = "a prompt that nobody may ever read in a log"


@pytest.fixture
async def receiver():
    async with otlp_receiver() as receiver:
        yield receiver


@asynccontextmanager
async def serving(*arguments: str, **variables: str) -> AsyncIterator[ServedMesh]:
    """Run a server that exports soon, without blocking the receiver."""
    context = served(*arguments, **SOON, **variables)
    process = await asyncio.to_thread(context.__enter__)
    try:
        yield process
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def test_one_trace_per_request_whatever_its_outcome(receiver) -> None:
    def server_spans() -> list:
        front = [span for span in receiver.spans if span.name.endswith("PipelineService/TryOn")]
        return [span for span in front if span.kind == span.SPAN_KIND_SERVER]

    picture = png()
    async with (
        serving(
            *("all", "--backend", "scripted", "--profile", "production"),
            VTRYON_OTLP_ENDPOINT=f"127.0.0.1:{receiver.port}",
            VTRYON_SCRIPTED_SECONDS="0.02",
            # The server's own deadline: a caller's would reach the server as a cancel, or first.
            VTRYON_DEFAULT_TIMEOUT_SECONDS="2",
        ) as process,
        vtryon.Client(process.target) as client,
    ):
        await client.try_on(picture, picture, CANARY, steps=2, timeout_seconds=60)
        with pytest.raises(vtryon.RequestError):
            await client.try_on(picture, picture, CANARY, steps=0, timeout_seconds=60)
        with pytest.raises(vtryon.DeadlineError):
            await client.try_on(picture, picture, CANARY, steps=200)
        async for event in client.try_on(picture, picture, CANARY, steps=200, timeout_seconds=60):
            if isinstance(event, vtryon.StepFinished):
                break
        await receiver.exports.until(lambda: len(server_spans()) == 4)

    servers = server_spans()
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


async def test_the_batch_and_the_caches_are_counted(receiver, example) -> None:
    found = receiver.metrics

    def ended() -> bool:
        names = [f"vtryon.batch.{one}" for one in ("finished", "cancelled", "running", "waiting")]
        if not found.points.keys() >= set(names):
            return False
        return [found.total(name) for name in names] == [2, 1, 0, 0]

    async with (
        serving("all", VTRYON_OTLP_ENDPOINT=f"127.0.0.1:{receiver.port}") as process,
        vtryon.Client(process.target) as client,
    ):
        for _ in range(2):
            await client.try_on(example.person, example.garment, "x", steps=3)
        async for event in client.try_on(example.person, example.garment, "x", steps=200):
            if isinstance(event, vtryon.StepFinished) and event.step == 2:
                break
        await receiver.exports.until(ended)

    assert found.total("vtryon.batch.finished") == 2
    assert found.total("vtryon.batch.cancelled") == 1
    assert found.total("vtryon.batch.wasted_steps") >= 2
    steps = found.total("vtryon.batch.steps")
    assert steps == found.total("vtryon.batch.rows")
    # The step under way when the caller leaves may be counted as neither.
    assert steps - 6 - found.total("vtryon.batch.wasted_steps") in {0, 1}
    assert found.total("vtryon.batch.running") == found.total("vtryon.batch.waiting") == 0
    for stage, hits in (("latent-encoder", 4), ("text-encoder", 2)):
        assert found.total("vtryon.cache.lookups", stage=stage, outcome="hit") == hits
        assert found.total("vtryon.permits.waiting", stage=stage) == 0
    methods = {
        next(item.value.string_value for item in point.attributes if item.key == "rpc.method")
        for point in found.points["rpc.server.duration"]
    }
    assert {"TryOn", "Encode", "Sample", "Decode"} <= methods


def dict_of(span) -> dict[str, int]:
    return {item.key: item.value.int_value for item in span.attributes}


def resource_of(monkeypatch, **variables: str) -> dict:
    from vtryon_services.runtime.telemetry import _resource

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return dict(_resource("pipeline").attributes)


def test_opentelemetrys_own_variables_name_the_service(monkeypatch) -> None:
    assert resource_of(monkeypatch)["service.name"] == "vtryon-pipeline"
    named = resource_of(monkeypatch, OTEL_RESOURCE_ATTRIBUTES="service.name=other,zone=blue")
    assert (named["service.name"], named["zone"]) == ("other", "blue")
    assert resource_of(monkeypatch, OTEL_SERVICE_NAME="shop")["service.name"] == "shop"


@pytest.mark.parametrize("signal", ["", "TRACES_"])
async def test_spans_go_with_tls_and_headers_as_the_standard_variables_say(
    tmp_path, signal
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    certificate = authority.issue_cert("localhost")
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    async with otlp_receiver(credentials) as receiver:
        variables = {
            f"OTEL_EXPORTER_OTLP_{signal}CERTIFICATE": str(tmp_path / "ca.crt"),
            f"OTEL_EXPORTER_OTLP_{signal}HEADERS": "api-key=abc",
        }
        if signal:  # beside our own setting, which has no scheme
            variables["VTRYON_OTLP_ENDPOINT"] = f"localhost:{receiver.port}"
        else:
            variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"https://localhost:{receiver.port}"
        async with (
            serving(
                *("all", "--backend", "scripted"),
                **variables,
            ) as process,
            vtryon.Client(process.target) as client,
        ):
            await client.try_on(png(), png(), steps=1)
            await receiver.exports.until(
                lambda: any(one.name.endswith("PipelineService/TryOn") for one in receiver.spans)
            )
        assert ("api-key", "abc") in receiver.metadata


async def test_the_callers_trace_state_and_baggage_come_along(monkeypatch) -> None:
    from opentelemetry import baggage, trace

    from vtryon.embedded import embedded_mesh
    from vtryon.v1 import pipeline_pb2, pipeline_pb2_grpc
    from vtryon_services.backends.scripted import ScriptedDecoding

    seen: dict[str, str | None] = {}
    decode = ScriptedDecoding.decode

    async def watched(self, *arguments):
        seen["baggage"] = baggage.get_baggage("shop")
        seen["state"] = trace.get_current_span().get_span_context().trace_state.get("vendor")
        return await decode(self, *arguments)

    monkeypatch.setattr(ScriptedDecoding, "decode", watched)
    carried = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "vendor=value"),
        ("baggage", "shop=north"),
    ]
    request = pipeline_pb2.TryOnInlineRequest(person=png())
    async with (
        embedded_mesh(backend="scripted") as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = pipeline_pb2_grpc.PipelineServiceStub(channel).TryOnInline(request, metadata=carried)
        async for _ in call:
            pass
    assert seen == {"baggage": "north", "state": "value"}
