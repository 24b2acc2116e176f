import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.support.pictures import png

import vtryon
from vtryon.types import Stage
from vtryon_services.backends.scripted import ScriptedSampling
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.rpc.process import RunningServer
from vtryon_services.rpc.serve import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def mesh(**given) -> AsyncIterator[RunningServer]:
    """A scripted mesh whose steps take 50 ms; leaving the block drains it."""
    settings = PipelineSettings.load(log_level="error", **given)
    stages = host(settings, list(Stage), "127.0.0.1:0", backend="scripted", scripted_seconds=0.05)
    async with stages as serving:
        yield serving


async def health(target: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def reflected(target: str) -> list[str]:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answer = await call.read()
        call.cancel()
        return [service.name for service in answer.list_services_response.service]


async def test_health_speaks_for_the_process_and_for_each_service() -> None:
    async with mesh() as serving:
        for name in ("", "vtryon.v1.SamplingService", "vtryon.v1.PipelineService"):
            assert await health(serving.address, name) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(serving.address, "vtryon.v1.Nonesuch")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_follows_the_backend(monkeypatch) -> None:
    ready = True

    async def is_ready(_: ScriptedSampling) -> bool:
        return ready

    monkeypatch.setattr(ScriptedSampling, "is_ready", is_ready)
    async with mesh() as serving:
        for now, expected in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
            ready = now
            async with asyncio.timeout(5):
                while await health(serving.address, "vtryon.v1.SamplingService") != expected:
                    await asyncio.sleep(0.1)
            assert await health(serving.address) == expected
            assert await health(serving.address, "vtryon.v1.DecodingService") == SERVING


async def test_reflection_is_for_development_only() -> None:
    async with mesh() as serving:
        assert "vtryon.v1.PipelineService" in await reflected(serving.address)
    async with mesh(profile="production") as serving:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(serving.address)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_draining_says_not_serving_first_and_lets_open_calls_finish() -> None:
    async with mesh(drain_delay_seconds=0.3) as serving, vtryon.Client(serving.address) as client:
        run = client.try_on(png(), png(), steps=8)
        draining = None
        async for event in run:
            if isinstance(event, vtryon.StepFinished) and draining is None:
                draining = asyncio.create_task(serving.server.drain())
                await asyncio.sleep(0.02)
                assert await health(serving.address) == NOT_SERVING
        assert (await run).picture.data
        await draining


async def test_what_does_not_finish_in_the_grace_is_cut_off() -> None:
    async with mesh(drain_grace_seconds=0.1) as serving, vtryon.Client(serving.address) as client:
        with pytest.raises((vtryon.UnavailableError, vtryon.RunCancelledError)):
            async for event in client.try_on(png(), png(), steps=200):
                if isinstance(event, vtryon.StepFinished) and event.step == 1:
                    draining = asyncio.create_task(serving.server.drain())
        await draining


async def test_an_address_that_is_taken_is_told() -> None:
    async with mesh() as serving:
        with pytest.raises(vtryon.SettingsError, match=f"can't serve on {serving.address}: it is"):
            Server(PipelineSettings.load()).bind(serving.address)


async def test_a_certificate_without_its_key_is_told(tmp_path) -> None:
    settings = PipelineSettings.load(tls_certificate_path=tmp_path / "a.pem")
    with pytest.raises(vtryon.SettingsError, match="both"):
        Server(settings).bind("127.0.0.1:0")


async def test_jobs_beside_a_pipeline_run_behind_tls(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody is there
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    given = {
        "backend": "scripted",
        "log_level": "error",
        "drain_grace_seconds": 0.0,
        "tls_certificate_path": tmp_path / "cert.pem",
        "tls_key_path": tmp_path / "key.pem",
        "database_url": f"sqlite:///{tmp_path / 'jobs.sqlite'}",
        "artifacts_url": str(tmp_path / "artifacts"),
    }
    settings = PipelineSettings.load_from(given, [JobsSettings])
    async with host(settings, [*Stage, "jobs"], "localhost:0", **given) as serving:
        monkeypatch.setenv("no_proxy", "localhost")  # for this test's own client
        tls = vtryon.Tls(ca_path=tmp_path / "ca.crt")
        async with vtryon.Client(serving.address, tls=tls) as client, asyncio.timeout(60):
            made = await client.jobs.create(png(), png(), steps=1)
            assert str((await client.jobs.wait(made.id)).state) == "succeeded"
