"""One trace through every Envoy and service; metrics of every process."""

from __future__ import annotations

import asyncio
import os
import ssl
import urllib.request
from pathlib import Path

import httpx
from opentelemetry import propagate, trace
from tests.mesh.conftest import AT_ONCE, Town, town_of
from tests.support.kafka import Kafka, job_request
from tests.support.otlp import otlp_receiver

from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.local.layout import BROKER, ENVOY_READY, REGISTRY


async def test_one_trace_from_the_caller_to_the_last_step(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    context = trace.SpanContext(
        int.from_bytes(os.urandom(16), "big"),
        int.from_bytes(os.urandom(8), "big"),
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    async with otlp_receiver() as receiver:
        otlp = Address("127.0.0.1", receiver.port)
        start = town_of(tmp_path, services=None, replicas={}, otlp=otlp, variables=AT_ONCE)
        town = await asyncio.to_thread(start.__enter__)
        try:
            with trace.use_span(trace.NonRecordingSpan(context)):
                async with town.client() as client:
                    await client.try_on(b"person", b"garment", steps=3)
                await by_rest(town, trace.set_span_in_context(trace.NonRecordingSpan(context)))
                await by_kafka(town, trace.set_span_in_context(trace.NonRecordingSpan(context)))
            own = context.trace_id.to_bytes(16, "big")
            expected = {f"vtryon-{name}" for name in town.mesh.services}
            expected |= {"envoy-edge", "envoy-rest-in", "envoy-pipeline-out", "envoy-sampling-in"}

            def found() -> dict[bytes, tuple[str, object]]:
                return {
                    span.span_id: (named(resource), span)
                    for request in receiver.requests
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                    if span.trace_id == own
                }

            def missing() -> set[bytes]:
                """Parents that no span is of, but for the one outside."""
                there = found()
                parents = {span.parent_span_id for _, span in there.values()}
                return parents - set(there) - {context.span_id.to_bytes(8, "big")}

            def steps() -> list[int]:
                """Of each sampling, how many it tells of."""
                return [
                    len([event for event in span.events if event.name == "step"])
                    for name, span in found().values()
                    if name == "vtryon-sampling" and span.name.endswith("Sample")
                ]

            def whole() -> bool:
                names = {name for name, _ in found().values()}
                return len(steps()) == 3 and expected <= names and not missing()

            async with asyncio.timeout(30):
                while not whole():
                    await asyncio.sleep(0.5)
        finally:
            await asyncio.to_thread(start.__exit__, None, None, None)
    spans = found()
    parents = {span.parent_span_id for _, span in spans.values()}
    assert parents - set(spans) == {context.span_id.to_bytes(8, "big")}
    assert sorted(steps()) == [1, 3, 3]


async def by_rest(town: Town, context: object) -> None:
    headers = {"authorization": f"Bearer {town.issuer.token('acme')}"}
    propagate.inject(headers, context)
    verify = ssl.create_default_context(cafile=str(town.layout.certificates / "ca.crt"))
    async with httpx.AsyncClient(base_url=f"https://{town.edge_address}", verify=verify) as http:
        answer = await http.post(
            "/v1/try-ons", files=[("person", b"person")], data={"steps": 3}, headers=headers
        )
        listed = await http.get("/v1/jobs", headers=headers)
    assert (answer.status_code, listed.status_code) == (200, 200)


async def by_kafka(town: Town, context: object) -> None:
    places = {process.name: process.health for process in town.layout.processes}
    kafka = Kafka(places["broker"], places["registry"], prefix="vtryon")
    headers: dict[str, str] = {}
    propagate.inject(headers, context)
    request = job_request("traced", b"person", b"garment", steps=1)
    await kafka.send("jobs.requests", "job_request", request, **headers)
    [answer] = await kafka.answers("jobs.responses", "traced")
    assert kafka.read(answer.value)["state"] == "SUCCEEDED"


def named(resource) -> str:
    return next(
        one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
    )


async def test_every_process_has_metrics_for_prometheus(town: Town, caller) -> None:
    await caller.try_on(b"person", b"garment", steps=2)

    def fetch(address: str) -> str:
        with urllib.request.urlopen(f"http://{address}", timeout=5) as answer:
            return answer.read().decode()

    found = {
        process.name: await asyncio.to_thread(fetch, process.metrics)
        for process in town.layout.processes
        if process.metrics
    }
    for process in town.layout.processes:
        if process.name in {BROKER, REGISTRY}:
            continue
        is_envoy = process.ready == ENVOY_READY
        wanted = "envoy_cluster_upstream_rq_total" if is_envoy else "python_info"
        assert wanted in found[process.name], process.name
    counted = [line for line in found["decoding"].splitlines() if "rpc_server_duration" in line]
    assert any('rpc_method="Decode"' in line for line in counted)
    assert any("vtryon_permits_taken" in line for line in found["decoding"].splitlines())
    assert "PipelineService" in found["edge"]
