"""The wheel in clean environments: bare against a running mesh, and with everything embedded."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=CLEAN, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, ROOT, cwd=out)
    return next(out.glob("vtryon-*.whl"))


def environment(folder: Path, requirement: str) -> Path:
    """A clean environment with one requirement; its bin folder."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraint = ROOT / "constraints.txt"
    run(
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--constraint", constraint, requirement),
        cwd=folder,
    )
    return folder / "bin"


@pytest.mark.timeout(600)
def test_the_bare_wheel_talks_to_a_running_mesh(wheel: Path, tmp_path, served_mesh) -> None:
    bin_folder = environment(tmp_path / "bare", str(wheel))
    installed = run(bin_folder / "python", "-m", "pip", "list", cwd=tmp_path).lower()
    for heavy in ("torch", "numpy", "pillow", "typer"):
        assert f"\n{heavy} " not in installed
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
    bin_folder = environment(tmp_path / "full", f"{wheel}[server,cli]")
    empty = tmp_path / "empty"
    empty.mkdir()
    run(bin_folder / "vtryon", "example-pair", "--out", ".", cwd=empty)
    run(bin_folder / "vtryon", "try-on", "person.png", "garment.png", "-o", "r.png", cwd=empty)
    assert (empty / "r.png").read_bytes().startswith(b"\x89PNG")
