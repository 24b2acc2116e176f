"""One list of requests through every door and topology: the same picture, the same reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from tests.conformance.doors import (
    Asked,
    Door,
    Events,
    Files,
    Form,
    Grpc,
    Inline,
    Job,
    Json,
    RestJob,
)
from tests.support.bad_input import OPTIONS, PICTURE, PICTURES
from tests.support.triton import export_shipped, installation, triton_server

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.errors import SettingsError
from vtryon.pictures import read_picture
from vtryon.types import Stage
from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.mannequin.triples import held_out

DOORS = ["inline", "job", "form", "json", "events", "rest job", "files"]
DRAWN = {
    "plain": {"steps": 4, "seed": 1},
    "guided": {"steps": 3, "seed": 2, "true_cfg_scale": 3.0, "negative_prompt": "tucked in"},
    "smaller": {"steps": 4, "seed": 3, "width": 64, "height": 96},
    "comfy": {"steps": 5, "seed": 4, "profile": vtryon.Profile.COMFY},
    "from the person": {"steps": 4, "seed": 5, "strength": 0.6},
    "own levels": {"seed": 6, "sigmas": (1.0, 0.7, 0.2)},
}
REFUSED = {name: options for name, (options, _) in OPTIONS.items()}


@pytest.fixture(scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Door]]:
    """The mesh with jobs, and the bridge in front."""
    folder = tmp_path_factory.mktemp("conformance")
    given = {
        "database_url": f"sqlite+aiosqlite:///{folder / 'jobs.sqlite'}",
        "artifacts_url": str(folder / "artifacts"),
        "retry_seconds": 0.1,
        "max_attempts": 1,
        "log_level": "error",
        "drain_grace_seconds": 1.0,
    }
    settings = JobsSettings.load_from(given)
    async with host(settings, [*Stage, "jobs"], "127.0.0.1:0", **given) as serving:
        target = serving.address
        rest = RestSettings.load(listen="127.0.0.1:0", pipeline_target=target)
        async with begin(rest) as began:
            url = f"http://{began.address}"
            yield {
                "grpc": Grpc(target),
                "inline": Inline(target),
                "job": Job(target),
                "form": Form(url),
                "json": Json(url),
                "events": Events(url),
                "rest job": RestJob(url),
                "files": Files(target, folder / "files"),
            }


@pytest.fixture(scope="module")
async def ensemble(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """The same, as one request of a Triton server's ensemble."""
    try:
        installation()
    except SettingsError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("ensemble")
    repository = export_shipped(folder / "repository", threads=1)
    with triton_server(repository, folder / "server.log") as running:
        async with embedded_mesh(triton_url=running.grpc, topology="ensemble") as target:
            yield Grpc(target)


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    """What is to be drawn, by name."""
    example = held_out(0)
    person, garment = read_picture(example.person), read_picture(example.garment)
    return {
        name: Asked(person, (garment,), {"prompt": example.prompt, **options})
        for name, options in DRAWN.items()
    }


@pytest.fixture(scope="module")
async def expected(doors: dict[str, Door], asked: dict[str, Asked]) -> dict[str, np.ndarray]:
    """What the gRPC door draws."""
    drawn = await asyncio.gather(*(doors["grpc"].draw(one) for one in asked.values()))
    return {name: one.pixels.astype(int) for name, one in zip(asked, drawn, strict=True)}


def same(found: np.ndarray | None, expected: np.ndarray) -> bool:
    return found is not None and np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("door", DOORS)
async def test_the_same_picture_through_every_door(doors, asked, expected, door: str) -> None:
    taken = {name: one for name, one in asked.items() if doors[door].takes(one)}
    found = await asyncio.gather(*(doors[door].draw(one) for one in taken.values()))
    for name, went in zip(taken, found, strict=True):
        assert same(went.pixels, expected[name]), (name, went.reason)
    assert len(taken) >= 5


async def test_the_same_picture_from_the_ensemble(ensemble, asked, expected) -> None:
    found = await asyncio.gather(*(ensemble.draw(one) for one in asked.values()))
    for name, went in zip(asked, found, strict=True):
        assert same(went.pixels, expected[name]), (name, went.reason)


@pytest.fixture(scope="module")
async def reasons(doors: dict[str, Door]) -> dict[str, str]:
    """What the gRPC door says to bad requests."""
    said = await asyncio.gather(
        *(doors["grpc"].draw(Asked(PICTURE, (PICTURE,), one)) for one in REFUSED.values()),
        *(
            doors["grpc"].draw(Asked(data, (PICTURE,), {"steps": 1}))
            for data, _ in PICTURES.values()
        ),
    )
    return {name: one.reason for name, one in zip([*REFUSED, *PICTURES], said, strict=True)}


@pytest.mark.parametrize("door", DOORS)
async def test_the_same_reason_through_every_door(doors, reasons, door: str) -> None:
    bad = {name: Asked(PICTURE, (PICTURE,), options) for name, options in REFUSED.items()}
    bad |= {name: Asked(data, (PICTURE,), {"steps": 1}) for name, (data, _) in PICTURES.items()}
    taken = {name: one for name, one in bad.items() if doors[door].takes(one)}
    if door == "files":  # a process each: some of every kind will do
        some = ["zero steps", "a huge seed", "a long prompt", "width alone", *PICTURES]
        taken = {name: taken[name] for name in some}
    assert all(reasons[name] for name in taken)
    for name, one in taken.items():
        assert (name, (await doors[door].draw(one)).reason) == (name, reasons[name])
    [good] = await asyncio.gather(doors[door].draw(Asked(PICTURE, (PICTURE,), {"steps": 1})))
    assert good.pixels is not None
