"""Waiting for a mesh of processes."""

from __future__ import annotations

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
