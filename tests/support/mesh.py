"""Waiting for a mesh of processes."""

from __future__ import annotations

import contextlib
import socket
import time

from vtryon_mesh.local.supervise import Status, Supervisor


def wait_until_healthy(supervisor: Supervisor, seconds: float = 90) -> list[Status]:
    until = time.monotonic() + seconds
    while True:
        statuses = supervisor.statuses()
        if all(one.healthy for one in statuses):
            return statuses
        unwell = [(one.process.name, one.state) for one in statuses if not one.healthy]
        assert time.monotonic() < until, f"not healthy: {unwell}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]
