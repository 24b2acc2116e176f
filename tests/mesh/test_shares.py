"""Shares of the calls: for a new version, and for the caller's own zone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.mesh.conftest import AT_ONCE, Town, town_of

from vtryon.errors import SettingsError, UnavailableError
from vtryon_mesh.description import Mesh
from vtryon_mesh.local.layout import UpOptions
from vtryon_mesh.local.planning import lay_out


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Two replicas of sampling in two zones, and of decoding, where the second is tried out."""
    with town_of(
        tmp_path_factory.mktemp("shares"),
        replicas={"sampling": 2, "decoding": 2},
        canaries={"decoding": 20},
        zones=2,
        variables=AT_ONCE,
    ) as town:
        time.sleep(3)  # until every Envoy has looked at every replica
        yield town


async def draw(town: Town, count: int) -> None:
    async with town.client() as client:
        for _ in range(count // 20):
            await asyncio.gather(
                *(client.try_on(b"person", b"garment", steps=1) for _ in range(20))
            )


async def test_a_canary_gets_its_share_and_most_calls_stay_in_their_zone(shared: Town) -> None:
    await draw(shared, 200)
    stable, canary = (
        sum(shared.calls("pipeline", name).values()) for name in ("decoding", "decoding-canary")
    )
    assert stable + canary == 200
    assert 20 <= canary <= 65
    near, far = shared.layout.replicas["sampling"]
    assert (near.zone, far.zone) == ("zone-1", "zone-2")
    calls = shared.calls("pipeline", "sampling")
    assert calls[str(near)] + calls[str(far)] == 200
    assert 160 <= calls[str(near)] < 200  # nine in ten


async def test_calls_leave_a_zone_that_has_no_well_replica(shared: Town) -> None:
    _, far = shared.layout.replicas["sampling"]
    statuses = {one.process.name: one for one in shared.supervisor.statuses()}
    os.kill(statuses["sampling-1"].pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            while True:
                before = shared.calls("pipeline", "sampling")[str(far)]
                with suppress(UnavailableError):  # until every Envoy knows that it is frozen
                    await draw(shared, 20)
                if shared.calls("pipeline", "sampling")[str(far)] >= before + 20:
                    break
    finally:
        os.kill(statuses["sampling-1"].pid, signal.SIGCONT)


def test_a_canary_needs_somebody_to_compare_with(tmp_path: Path) -> None:
    mesh = Mesh.load()
    with pytest.raises(SettingsError, match="two replicas"):
        lay_out(
            mesh, UpOptions(list(mesh.services), {}, mtls=True, canaries={"sampling": 5}), tmp_path
        )
