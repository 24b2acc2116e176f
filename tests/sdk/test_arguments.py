"""What can't be sent is refused before the call, as a RequestError that names the argument."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from tests.support.pictures import png

import vtryon
from vtryon.jobs import Jobs
from vtryon.types import Stage
from vtryon.unary import ask
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings

PICTURE = png()
HALF = "wear it \ud83d"


@pytest.fixture
async def office(tmp_path) -> AsyncIterator[vtryon.Client]:
    """A client of a scripted mesh that serves jobs as well."""
    given = {
        "backend": "scripted",
        "scripted_seconds": 0.02,
        "database_url": f"sqlite+aiosqlite:///{tmp_path / 'jobs.sqlite'}",
        "artifacts_url": str(tmp_path / "artifacts"),
        "drain_grace_seconds": 1.0,
        "log_level": "error",
    }
    settings = JobsSettings.load_from(given)
    async with (
        host(settings, [*Stage, "jobs"], "127.0.0.1:0", **given) as serving,
        vtryon.Client(serving.address) as client,
    ):
        yield client


WRONG_OPTIONS = [
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"width": -16, "height": -16}, "width"),
    ({"steps": "4"}, "steps"),
    ({"true_cfg_scale": "high"}, "true_cfg_scale"),
    ({"sigmas": 0.5}, "sigmas"),
    ({"sigmas": ["a"]}, "sigmas"),
    ({"sigmas": [True, 0.5]}, "sigmas"),
    ({"sigmas": ["1.0", "0.5"]}, "sigmas"),
    ({"sigmas": np.array([True])}, "sigmas"),
    ({"steps": True}, "steps"),
    ({"seed": False}, "seed"),
    ({"true_cfg_scale": True}, "true_cfg_scale"),
    ({"numerics": vtryon.Numerics(shift=True)}, "numerics.shift"),
    ({"quality": 2**40, "format": "jpeg"}, "quality"),
    ({"prompt": HALF}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"true_cfg_scale": 10**400}, "true_cfg_scale"),
    ({"prompt": 7}, "prompt"),
    ({"negative_prompt": HALF}, "negative_prompt"),
    ({"profile": "nonesuch"}, "profile"),
    ({"format": "gif"}, "format"),
    ({"priority": 1}, "priority"),
    ({"previews": "no"}, "previews"),
    ({"numerics": "comfy"}, "numerics"),
    ({"numerics": vtryon.Numerics(schedule="simpel")}, "numerics.schedule"),
    ({"timeout_seconds": "5"}, "timeout_seconds"),
    ({"timeout_seconds": 0}, "timeout_seconds"),
    ({"timeout_seconds": True}, "timeout_seconds"),
    ({"timeout_seconds": float("inf")}, "timeout_seconds"),
    ({"request_id": "Müller"}, "request_id"),
    ({"request_id": "order-1\n"}, "request_id"),
    ({"request_id": HALF}, "request_id"),
    ({"request_id": "x" * 129}, "request_id"),
]


def names(error: vtryon.RequestError) -> list[str]:
    return [violation.field for violation in error.violations]


@pytest.mark.parametrize(("options", "name"), WRONG_OPTIONS, ids=str)
async def test_a_try_on_with_a_wrong_argument_is_refused_at_once(
    scripted: vtryon.Client, options, name
) -> None:
    with pytest.raises(vtryon.RequestError) as caught:
        scripted.try_on(PICTURE, PICTURE, **options)
    assert names(caught.value) == [name]
    assert "\ud83d" not in caught.value.message


@pytest.mark.parametrize(
    ("options", "name"),
    [*WRONG_OPTIONS, ({"labels": {"a": 1}}, "labels"), ({"labels": {"a": HALF}}, "labels")],
    ids=str,
)
async def test_a_job_with_a_wrong_argument_is_refused_before_the_call(
    scripted: vtryon.Client, options, name
) -> None:
    """The mesh serves no jobs: a call that was made would end as UnavailableError."""
    with pytest.raises(vtryon.RequestError) as caught:
        await scripted.jobs.create(PICTURE, PICTURE, **options)
    assert names(caught.value) == [name]


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs: jobs.get(7),
        lambda jobs: jobs.cancel(HALF),
        lambda jobs: jobs.erase(b"\xff"),
        lambda jobs: jobs.page(size=-1),
        lambda jobs: jobs.page(states=["asleep"]),
        lambda jobs: jobs.wait(HALF),
        lambda jobs: jobs.picture(HALF),
        lambda jobs: anext(jobs.watch("job", from_sequence="1")),
        lambda jobs: anext(jobs.list(states="asleep")),
    ],
)
async def test_every_call_of_jobs_refuses_what_it_cannot_send(scripted, call) -> None:
    with pytest.raises((vtryon.RequestError, TypeError)):
        await call(scripted.jobs)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client: client.text_encoder.encode(HALF, [PICTURE]), "prompt"),
        (lambda client: client.text_encoder.encode(None, [PICTURE]), "prompt"),
        (lambda client: client.text_encoder.encode("a", [PICTURE], numerics="comfy"), "numerics"),
        (lambda client: client.latent_encoder.encode([PICTURE], numerics=7), "numerics"),
        (lambda client: client.latent_encoder.encode([PICTURE], timeout_seconds=-1), "timeout"),
        (
            lambda client: client.sampling.sample(
                vtryon.SampleStart(seed=-1), vtryon.Conditioning(vtryon.Embeddings(TENSOR), [])
            ),
            "seed",
        ),
        (lambda client: client.decoding.decode(TENSOR, format="gif"), "format"),
        (lambda client: client.decoding.decode(TENSOR, quality="high"), "quality"),
    ],
)
async def test_every_stage_refuses_what_it_cannot_send(scripted, call, name) -> None:
    with pytest.raises(vtryon.RequestError, match=name):
        await call(scripted)


TENSOR = vtryon.Tensor(
    vtryon.types.TensorSpec(vtryon.types.DataType.FP32, (16, 2, 2)), bytearray(4 * 64)
)


async def test_words_are_taken_for_enums_in_any_case(scripted: vtryon.Client) -> None:
    result = await scripted.try_on(
        PICTURE, steps=1, format="JPEG", priority="batch", profile="comfy", quality=80
    )
    assert result.picture.data
    assert result.accepted.numerics.profile is vtryon.Profile.COMFY


async def test_the_largest_seed_is_taken(scripted: vtryon.Client) -> None:
    assert (await scripted.try_on(PICTURE, steps=1, seed=2**64 - 1)).seed == 2**64 - 1


async def test_a_failure_of_what_sends_is_no_cancellation(office: vtryon.Client) -> None:
    async def failing() -> AsyncIterator[bytes]:
        raise ValueError("the disk is gone")
        yield b""

    path = "/vtryon.v1.JobService/CreateJob"
    with pytest.raises(vtryon.StageError, match=r"could not be sent: .*the disk is gone") as caught:
        await ask(office.channel, path, failing, vtryon.Job)
    assert isinstance(caught.value.__cause__, ValueError)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_closing_a_client_ends_its_calls_with_an_error_of_ours(office) -> None:
    job = await office.jobs.create(PICTURE, PICTURE, steps=200)
    client = vtryon.Client(office.channel.target)
    await client.__aenter__()
    watching = asyncio.create_task(_watch_to_the_end(client.jobs, job.id, begun := asyncio.Event()))
    await begun.wait()
    await client.__aexit__(None, None, None)
    with pytest.raises(vtryon.RunCancelledError):
        await watching
    await office.jobs.cancel(job.id)


async def _watch_to_the_end(jobs: Jobs, job_id: str, begun: asyncio.Event) -> None:
    async for _ in jobs.watch(job_id):
        begun.set()
