"""The wheel in clean environments: bare against a running mesh, and with everything embedded."""

import subprocess
from pathlib import Path

import pytest
from tests.support.environments import CLEAN, ROOT, make_environment, run


@pytest.mark.timeout(600)
def test_the_bare_wheel_talks_to_a_running_mesh(wheel: Path, tmp_path, served_mesh) -> None:
    bin_folder = make_environment(tmp_path / "bare", str(wheel))
    installed = {path.name.split("-")[0] for path in bin_folder.parent.rglob("*.dist-info")}
    assert not installed & {"torch", "numpy", "pillow", "typer"}
    program = f"""
import asyncio, vtryon
async def main():
    async with vtryon.Client({served_mesh.target!r}) as client:
        result = await client.try_on({str(ROOT / "docs" / "strip.png")!r}, steps=1)
        result.picture.save("result.png")
asyncio.run(main())
"""
    run(bin_folder / "python", "-c", program, cwd=tmp_path)
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    refused = subprocess.run(
        [bin_folder / "vtryon"], capture_output=True, text=True, env=CLEAN, cwd=tmp_path
    )
    assert "pip install 'vtryon[cli]'" in refused.stderr


@pytest.mark.timeout(900)
def test_the_full_wheel_tries_on_from_an_empty_folder(wheel: Path, tmp_path) -> None:
    bin_folder = make_environment(tmp_path / "full", f"{wheel}[server]")
    empty = tmp_path / "empty"
    empty.mkdir()
    run(bin_folder / "vtryon", "example-pair", "--out", ".", cwd=empty)
    run(bin_folder / "vtryon", "try-on", "person.png", "garment.png", "-o", "r.png", cwd=empty)
    assert (empty / "r.png").read_bytes().startswith(b"\x89PNG")
