"""Each example runs, and so do the documents' Python blocks."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.documents import python_blocks
from tests.support.processes import served

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "sdk" / "examples"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, example) -> Path:
    folder = tmp_path_factory.mktemp("example")
    example.person.save(folder / "person.png")
    example.garment.save(folder / "garment.png")
    return folder


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ARGUMENTS = {
    "one_picture.py": ["person.png", "garment.png", "result.png"],
    "follow_the_steps.py": ["person.png", "garment.png", "2"],
    "many_at_once.py": ["person.png", "garment.png", "garment.png", "garment.png"],
    "stage_by_stage.py": ["person.png", "garment.png", "."],
}


def test_every_example_is_run() -> None:
    by_kafka = {"kafka_job.py"}  # in tests/services/bridges/kafka
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS) | by_kafka


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_runs(name: str, pair: Path, served_mesh) -> None:
    assert run(pair, str(EXAMPLES / name), served_mesh.target, *ARGUMENTS[name])


@pytest.fixture(scope="module")
def interfaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the documents say that the mesh and its bridge are, and where they are here."""
    folder = tmp_path_factory.mktemp("interfaces")
    with (
        served(
            *("all", "jobs", "--backend", "scripted"),
            VTRYON_JOBS_DATABASE_URL=f"sqlite:///{folder / 'jobs.sqlite'}",
            VTRYON_JOBS_ARTIFACTS_URL=str(folder / "artifacts"),
        ) as mesh,
        served("rest", VTRYON_REST_PIPELINE_TARGET=mesh.target) as rest,
    ):
        yield {"localhost:50050": mesh.target, "127.0.0.1:8000": rest.target}


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.splitlines()[0][:40])
def test_the_readmes_python_runs(block: str, pair: Path, interfaces: dict[str, str]) -> None:
    for said, here in interfaces.items():
        block = block.replace(said, here)
    if "async def main" not in block:
        block = f"import asyncio, vtryon\nasync def main():\n{textwrap.indent(block, '    ')}"
    run(pair, "-c", f"{block}\nasyncio.run(main())")


def test_the_readme_shows_python_at_all() -> None:
    assert len(python_blocks()) >= 2
