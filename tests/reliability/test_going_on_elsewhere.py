"""F6, F8, F20: a sampling replica is killed, frozen or drained, and the request finishes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
from tests.support.processes import ServedMesh, served

import vtryon
from vtryon import StepFinished
from vtryon.embedded import embedded_mesh

STEPS = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Replicas:
    """Two sampling processes, each on a port that it keeps through its restarts."""

    def __init__(self) -> None:
        self.ports = (free_port(), free_port())
        self._contexts: dict[int, AbstractContextManager[ServedMesh]] = {}
        self._processes: dict[int, ServedMesh] = {}
        for port in self.ports:
            self._start(port)

    @property
    def target(self) -> str:
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def ticks(self) -> dict[int, int]:
        return {port: process.cpu_ticks() for port, process in self._processes.items()}

    def strike(self, number: int, before: dict[int, int]) -> ServedMesh:
        """Send a signal to the replica that has computed most since `before`."""
        now = self.ticks()
        port = max(self.ports, key=lambda port: now[port] - before[port])
        os.kill(self._processes[port].process.pid, number)
        return self._processes[port]

    def restart(self) -> None:
        """Start again who is dead."""
        for port, process in list(self._processes.items()):
            if process.process.poll() is not None:
                self._contexts[port].__exit__(None, None, None)
                self._start(port)

    def close(self) -> None:
        for context in self._contexts.values():
            context.__exit__(None, None, None)

    def _start(self, port: int) -> None:
        self._contexts[port] = served(
            "sampling",
            listen=f"127.0.0.1:{port}",
            VTRYON_THREADS="1",
            VTRYON_DRAIN_DELAY_SECONDS="0",
        )
        self._processes[port] = self._contexts[port].__enter__()


@pytest.fixture(scope="module")
def replicas():
    found = Replicas()
    yield found
    found.close()


@pytest.fixture(scope="module")
async def client(replicas) -> AsyncIterator[vtryon.Client]:
    async with (
        embedded_mesh(sampling_target=replicas.target) as target,
        vtryon.Client(target) as client,
    ):
        yield client


async def draw(client, example, on_step=None) -> tuple[np.ndarray, list[int]]:
    run = client.try_on(
        example.person, example.garment, example.prompt, seed=3, steps=STEPS, timeout_seconds=60
    )
    steps = []
    async for event in run:
        if isinstance(event, StepFinished):
            steps.append(event.step)
            if on_step is not None:
                on_step(event.step)
    return (await run).picture.to_numpy(), steps


@pytest.mark.timeout(300)
async def test_a_killed_replica_costs_the_caller_nothing_but_time(
    client, replicas, example
) -> None:
    whole, _ = await draw(client, example)
    for at in (1, 7, 30, 58):
        before = replicas.ticks()

        def kill(step: int, at=at, before=before) -> None:
            if step == at:
                replicas.strike(signal.SIGKILL, before)

        drawn, steps = await draw(client, example, kill)
        np.testing.assert_array_equal(drawn, whole)
        assert all(earlier < later for earlier, later in itertools.pairwise(steps))
        assert steps[-1] == STEPS
        await asyncio.to_thread(replicas.restart)


@pytest.mark.timeout(300)
async def test_a_drained_replica_hands_its_requests_over(client, replicas, example) -> None:
    whole, _ = await draw(client, example)
    before, struck = replicas.ticks(), []

    def drain(step: int) -> None:
        if step == 10:
            struck.append((replicas.strike(signal.SIGTERM, before), time.monotonic()))

    drawn, steps = await draw(client, example, drain)
    process, at = struck[0]
    np.testing.assert_array_equal(drawn, whole)
    assert steps == list(range(1, STEPS + 1))
    assert process.process.wait(20) == 0
    assert time.monotonic() - at < 20
    await asyncio.to_thread(replicas.restart)


@pytest.mark.timeout(300)
async def test_a_frozen_replica_is_found_within_six_seconds(client, replicas, example) -> None:
    whole, _ = await draw(client, example)
    before, moments, struck = replicas.ticks(), [], []

    def freeze(step: int) -> None:
        moments.append(time.monotonic())
        if step == 10:
            struck.append(replicas.strike(signal.SIGSTOP, before))

    try:
        drawn, _ = await draw(client, example, freeze)
    finally:
        for process in struck:
            os.kill(process.process.pid, signal.SIGCONT)
    np.testing.assert_array_equal(drawn, whole)
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert max(pauses) < 6
