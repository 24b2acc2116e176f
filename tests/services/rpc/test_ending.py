"""Starting and stopping: signals in each phase, idle callers, logs without a reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.pictures import png
from tests.support.processes import VTRYON, served

import vtryon
from vtryon.v1 import pipeline_pb2_grpc
from vtryon_services.runtime.log_output import LogOutput

GRACE = {"VTRYON_DRAIN_GRACE_SECONDS": "60"}
SCRIPTED = ("all", "--backend", "scripted")


async def drained(mesh, begin) -> grpc.StatusCode:
    """Open a call, send SIGTERM, and give the call's end; all long before the grace is over."""
    async with grpc.aio.insecure_channel(mesh.target) as channel:
        call = await begin(channel)
        mesh.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(mesh.process.wait, 30) == 0
        return await call.code()


async def test_a_health_watch_does_not_hold_a_drain() -> None:
    with served(*SCRIPTED, **GRACE) as mesh:
        seen: list[int] = []

        async def read(watch) -> None:
            while (answer := await watch.read()) is not grpc.aio.EOF:
                seen.append(answer.status)

        async def begin(channel: grpc.aio.Channel):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            reading.append(asyncio.create_task(read(watch)))
            while not seen:
                await asyncio.sleep(0.01)
            return watch

        reading: list[asyncio.Task] = []
        assert await drained(mesh, begin) is grpc.StatusCode.OK
        await reading[0]
        assert seen == [
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        ]


async def test_a_stream_that_says_nothing_does_not_hold_a_drain() -> None:
    with served(*SCRIPTED, VTRYON_FIRST_MESSAGE_TIMEOUT_SECONDS="300", **GRACE) as mesh:
        calls: list[grpc.aio.StreamStreamCall] = []

        async def begin(channel: grpc.aio.Channel):
            stub = pipeline_pb2_grpc.PipelineServiceStub(channel)
            calls.append(call := stub.TryOn())
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in stub.TryOn(iter([])):  # behind it: the server has both by now
                    pass
            return call

        assert await drained(mesh, begin) is grpc.StatusCode.UNAVAILABLE
        assert "is going away" in await calls[0].details()


async def test_a_second_signal_ends_a_drain_at_once() -> None:
    with served(*SCRIPTED, VTRYON_SCRIPTED_SECONDS="5", **GRACE) as mesh:
        async with vtryon.Client(mesh.target) as client:
            run = client.try_on(png(), png(), steps=100)
            await anext(aiter(run))
            mesh.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(mesh.wait_for, "draining")
            mesh.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(mesh.process.wait, 10) == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_loads_at_once(number, tmp_path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import time\n"
        "from vtryon_services.backends import loading\n"
        "from vtryon_services.stages.decoding import service\n"
        "import asyncio\n"
        "async def slow(settings):\n"
        "    print('loading now', flush=True)\n"
        "    await asyncio.to_thread(time.sleep, 300)\n"
        "service.load_decoding = slow\n"
        "from vtryon.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, program, "serve", "decoding", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"loading now\n"
        process.send_signal(number)
        assert process.wait(20) == -number


def test_a_taken_port_is_found_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [VTRYON, "serve", "all", "--listen", address],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert f"can't serve on {address}" in " ".join(done.stderr.split())
    assert "load" not in done.stderr


async def test_a_collector_that_is_away_does_not_hold_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with served(*SCRIPTED, VTRYON_OTLP_ENDPOINT=endpoint, **GRACE) as mesh:
            async with vtryon.Client(mesh.target) as client:
                await client.try_on(png(), png(), steps=1)
            started = time.monotonic()
            mesh.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(mesh.process.wait, 30) == 0
            assert time.monotonic() - started < 10  # the exporter itself would retry for a minute


async def test_requests_are_served_and_drained_where_nobody_reads_the_log() -> None:
    reading, writing = os.pipe()
    command = [VTRYON, "serve", *SCRIPTED, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=writing) as process:
        os.close(writing)
        said = b""
        while b"address" not in said or not said.endswith(b"\n"):
            said += os.read(reading, 4096)
        target = next(w for w in said.decode().split() if "127.0.0.1:" in w).partition("=")[2]
        os.close(reading)
        async with vtryon.Client(target) as client:
            await client.try_on(png(), png(), steps=1)
            with pytest.raises(vtryon.RequestError):
                await client.try_on(png(), png(), steps=0)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


def test_a_log_whose_reader_is_slow_drops_lines_and_never_waits() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    output = LogOutput(stream)
    for _ in range(20_000):
        output.msg("x" * 100)  # the pipe takes 64 KiB
    output.close(0.01)
    os.close(reading)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_log_without_a_reader_never_raises() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", buffering=1)
    output = LogOutput(stream)
    for _ in range(10):
        output.info("x")
    output.close()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_server_says_what_it_loads_and_how_many_bytes() -> None:
    from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT

    with served("decoding", "--checkpoint", str(SHIPPED_CHECKPOINT)) as mesh:
        log = "".join(mesh.log)
    assert re.search(r"loading.*bytes=\W*\d{6,}", log)
    assert re.search(r"loaded.*seconds=\W*[\d.]+", log)
