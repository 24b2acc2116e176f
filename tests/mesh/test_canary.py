"""A share of the calls for a new version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.mesh.conftest import town_of

from vtryon.errors import SettingsError
from vtryon_mesh.description import Mesh
from vtryon_mesh.local.layout import Wanted, lay_out


async def test_a_canary_gets_its_share(tmp_path: Path) -> None:
    with town_of(tmp_path, replicas={"sampling": 2}, canaries={"sampling": 20}) as town:
        async with town.client() as client:
            for _ in range(10):
                runs = [client.try_on(b"person", b"garment", steps=1) for _ in range(20)]
                await asyncio.gather(*runs)
        await asyncio.sleep(11)  # Envoy writes its log every ten seconds
        stable, canary = (len(town.access_log(f"sampling-{number}")) for number in (1, 2))
    assert stable + canary == 200
    assert 20 <= canary <= 65


def test_a_canary_needs_somebody_to_compare_with(tmp_path: Path) -> None:
    mesh = Mesh.load()
    with pytest.raises(SettingsError, match="two replicas"):
        lay_out(
            mesh, Wanted(list(mesh.services), {}, mtls=True, canaries={"sampling": 5}), tmp_path
        )
