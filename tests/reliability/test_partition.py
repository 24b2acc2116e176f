"""A cable is pulled: between caller and server (F5), and between pipeline and stage (F9)."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.hosts import Hosts, two_hosts
from tests.support.processes import VTRYON

STEP_SECONDS = 0.2
CALLER = """
import asyncio, sys, time, vtryon
async def main():
    target, steps, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    async with vtryon.Client(target) as client:
        started = time.monotonic()
        run = client.try_on(b"person", b"garment", steps=steps, timeout_seconds=timeout)
        try:
            async for event in run:
                if isinstance(event, vtryon.Queued):
                    print("queued", flush=True)
                if isinstance(event, vtryon.StepFinished):
                    print("step", event.step, flush=True)
            print("done", flush=True)
        except vtryon.VtryonError as error:
            print(type(error).__name__, flush=True)
        print(f"after {time.monotonic() - started:.2f} s", flush=True)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


class Running:
    """A process whose lines can be waited for."""

    def __init__(self, command: list[str], **variables: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match:
        until = time.monotonic() + seconds
        while (line := self._lines.get(timeout=max(0.01, until - time.monotonic()))) is not None:
            self.said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended: {''.join(self.said)}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start() -> Iterator[object]:
    running: list[Running] = []

    def begin(command: list[str], **variables: str) -> Running:
        running.append(Running(command, **variables))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


def serve(hosts: Hosts, start, host: int, *stages: str, **variables: str) -> str:
    listen = f"{hosts.addresses[host]}:0"
    command = hosts.on(host, VTRYON, "serve", *stages, "--backend", "scripted", "--listen", listen)
    own = {"VTRYON_SAMPLING_SCRIPTED_SECONDS": str(STEP_SECONDS), **variables}
    found = start(command, **own).wait_for(r"address\W+([\d.]+:\d+)", 60)
    return found.group(1)


def call(hosts: Hosts, start, host: int, target: str, steps: int, timeout: float) -> Running:
    command = hosts.on(host, sys.executable, "-c", CALLER, target, steps, timeout)
    return start(command)


def test_a_caller_that_vanishes_gives_its_slot_back(hosts: Hosts, start) -> None:
    target = serve(hosts, start, 0, "all", VTRYON_SAMPLING_MAX_CONCURRENCY="1")
    call(hosts, start, 1, target, 200, 100).wait_for("step 3")
    waiting = call(hosts, start, 0, target, 2, 100)
    waiting.wait_for("queued")
    hosts.pull()
    try:
        pulled = time.monotonic()
        waiting.wait_for("step 1")  # that is when it has the slot
        assert time.monotonic() - pulled < 6 + STEP_SECONDS + 0.5  # what the news takes
    finally:
        hosts.plug_in()


def test_a_stage_behind_a_pulled_cable_is_missed_and_found_again(hosts: Hosts, start) -> None:
    sampling = serve(hosts, start, 1, "sampling")
    pipeline = serve(
        hosts,
        start,
        0,
        "latent-encoder",
        "text-encoder",
        "decoding",
        "pipeline",
        VTRYON_PIPELINE_SAMPLING_TARGET=sampling,
    )
    call(hosts, start, 0, pipeline, 2, 30).wait_for("done")
    waiting = call(hosts, start, 0, pipeline, 100, 60)
    waiting.wait_for("step 3")
    hosts.pull()
    pulled = time.monotonic()
    waiting.wait_for("UnavailableError")
    told = time.monotonic() - pulled
    hosts.plug_in()
    again = call(hosts, start, 0, pipeline, 1, 30)
    again.wait_for("done")
    healed = float(again.wait_for(r"after ([\d.]+) s").group(1)) - STEP_SECONDS
    assert told < 6  # found in 5 s, and so are the other attempts: they end together
    assert healed < 1
