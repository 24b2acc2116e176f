"""What can't be sent is refused before the call, as a RequestError that names the argument."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from PIL import Image
from tests.support.jobs import jobs_served
from tests.support.pictures import png

import vtryon
from vtryon.jobs import Jobs
from vtryon.wire.unary import ask

PICTURE = png()
HALF = "wear it \ud83d"


@pytest.fixture
async def office(tmp_path) -> AsyncIterator[vtryon.Client]:
    """A client of a scripted mesh that serves jobs as well."""
    async with (
        jobs_served(tmp_path, scripted_seconds=0.02, drain_grace_seconds=1.0) as target,
        vtryon.Client(target) as client,
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
    ({"sigmas": 3}, "sigmas"),
    ({"sigmas": b"ab"}, "sigmas"),
    ({"sigmas": {0.5, 1.0}}, "sigmas"),
    ({"sigmas": np.float32(1)}, "sigmas"),
    ({"sigmas": [10**400]}, "sigmas"),
    ({"prompt": b"x"}, "prompt"),
    ({"negative_prompt": b"x"}, "negative_prompt"),
    ({"negative_prompt": 7}, "negative_prompt"),
    ({"previews": vtryon.PreviewPolicy(every_steps="2")}, "previews.every_steps"),
    ({"previews": vtryon.PreviewPolicy(every_steps=None)}, "previews.every_steps"),
    ({"timeout_seconds": 10**400}, "timeout_seconds"),
    ({"timeout_seconds": 10**5000}, "timeout_seconds"),
    ({"seed": 10**5000}, "seed"),
    ({"steps": -(10**5000)}, "steps"),
    ({"request_id": b"order-1"}, "request_id"),
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


def named(value: dict | str) -> str:
    """Name a parameter without its values: Python does not write numbers of thousands of digits."""
    return value if isinstance(value, str) else ""


def names(error: vtryon.RequestError) -> list[str]:
    return [violation.field for violation in error.violations]


@pytest.mark.parametrize(("options", "name"), WRONG_OPTIONS, ids=named)
async def test_a_try_on_with_a_wrong_argument_is_refused_at_once(
    scripted: vtryon.Client, options, name
) -> None:
    with pytest.raises(vtryon.RequestError) as caught:
        scripted.try_on(PICTURE, PICTURE, **options)
    assert names(caught.value) == [name]
    assert "\ud83d" not in caught.value.message


EXCLUDED = [
    ({"options": {"seed": 1}}, "options"),
    ({"options": vtryon.TryOnOptions(), "steps": 4}, "steps"),
    ({"options": vtryon.TryOnOptions(), "previews": False}, "previews"),
    ({"options": vtryon.TryOnOptions(), "prompt": "wear it"}, "prompt"),
    ({"options": vtryon.TryOnOptions(seed=-1)}, "seed"),
]


@pytest.mark.parametrize(("arguments", "name"), EXCLUDED, ids=named)
async def test_options_as_one_value_exclude_keywords(
    scripted: vtryon.Client, arguments, name
) -> None:
    with pytest.raises(vtryon.RequestError) as caught:
        scripted.try_on(PICTURE, PICTURE, **arguments)
    assert names(caught.value) == [name]
    with pytest.raises(vtryon.RequestError) as caught:
        await scripted.jobs.create(PICTURE, PICTURE, **arguments)
    assert names(caught.value) == [name]


async def test_options_as_one_value_give_the_same_picture(scripted: vtryon.Client) -> None:
    options = vtryon.TryOnOptions(prompt="wear it", steps=2, seed=5, format="jpeg")
    by_value = await scripted.try_on(PICTURE, PICTURE, options=options)
    by_keywords = await scripted.try_on(
        PICTURE, PICTURE, "wear it", steps=2, seed=5, format="jpeg", previews=False
    )
    assert by_value.picture.data == by_keywords.picture.data
    assert by_value.accepted == by_keywords.accepted


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *WRONG_OPTIONS,
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": {"a": HALF}}, "labels"),
        ({"labels": {"a": b"x"}}, "labels"),
        ({"labels": {7: "x"}}, "labels"),
        ({"labels": "a=b"}, "labels"),
        ({"labels": []}, "labels"),
        ({"correlation_id": "x"}, "correlation_id"),
        ({"correlation_id": 7}, "correlation_id"),
        ({"request_id": 0}, "request_id"),
    ],
    ids=named,
)
async def test_a_job_with_a_wrong_argument_is_refused_before_the_call(
    scripted: vtryon.Client, options, name
) -> None:
    """The mesh serves no jobs: a call that was made would end as UnavailableError."""
    with pytest.raises(vtryon.RequestError) as caught:
        await scripted.jobs.create(PICTURE, PICTURE, **options)
    assert names(caught.value) == [name]


@pytest.mark.parametrize(
    ("call", "name", "given"),
    [
        (lambda jobs: jobs.get(7), "job_id", "int"),
        (lambda jobs: jobs.get(None), "job_id", "NoneType"),
        (lambda jobs: jobs.cancel(HALF), "job_id", "surrogate"),
        (lambda jobs: jobs.cancel(b"job"), "job_id", "bytes"),
        (lambda jobs: jobs.erase(b"\xff"), "job_id", "bytes"),
        (lambda jobs: jobs.page(size=-1), "size", "-1"),
        (lambda jobs: jobs.page(size="3"), "size", "a whole number, not str"),
        (lambda jobs: jobs.page(size=None), "size", "NoneType"),
        (lambda jobs: jobs.page(token=3), "token", "int"),
        (lambda jobs: jobs.page(states=["asleep"]), "states", "'asleep'"),
        (lambda jobs: jobs.page(states="asleep"), "states", "a list of job states, not str"),
        (lambda jobs: jobs.page(states=vtryon.JobState.FAILED), "states", "not JobState"),
        (lambda jobs: jobs.page(states=3), "states", "int"),
        (lambda jobs: jobs.wait(HALF), "job_id", "surrogate"),
        (lambda jobs: jobs.wait(3), "job_id", "int"),
        (lambda jobs: jobs.picture(HALF), "job_id", "surrogate"),
        (lambda jobs: jobs.picture([]), "job_id", "list"),
        (lambda jobs: anext(jobs.watch(None)), "job_id", "NoneType"),
        (lambda jobs: anext(jobs.watch("job", from_sequence="3")), "from_sequence", "str"),
        (lambda jobs: anext(jobs.watch("job", from_sequence=-1)), "from_sequence", "-1"),
        (lambda jobs: anext(jobs.watch("job", from_sequence=True)), "from_sequence", "bool"),
        (lambda jobs: anext(jobs.list(states="asleep")), "states", "str"),
    ],
)
async def test_every_call_of_jobs_refuses_what_it_cannot_send(scripted, call, name, given) -> None:
    with pytest.raises(vtryon.RequestError) as caught:
        await call(scripted.jobs)
    assert names(caught.value) == [name]
    assert caught.value.message.startswith(f"{name}: ")
    assert given in caught.value.message


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
        (lambda client: client.decoding.decode(ARRAY), "latents: .*Tensor, not ndarray"),
        (lambda client: client.decoding.decode(None), "latents: .*NoneType"),
        (lambda client: client.sampling.sample(START, ARRAY), "given: .*Conditioning, not ndarray"),
        (lambda client: client.sampling.sample(None, ARRAY), "start: .*SampleStart, not NoneType"),
        (lambda client: client.latent_encoder.encode(Image.new("RGB", (8, 8))), "pictures: .*list"),
        (lambda client: client.latent_encoder.encode("path.png"), "pictures: .*list .*not str"),
        (lambda client: client.latent_encoder.encode(PICTURE), "pictures: .*list .*not bytes"),
        (lambda client: client.latent_encoder.encode(ARRAY), "pictures: .*list .*not ndarray"),
        (lambda client: client.latent_encoder.encode(None), "pictures: .*list .*not NoneType"),
        (lambda client: client.text_encoder.encode("a", "path.png"), "pictures: .*list"),
        (lambda client: client.text_encoder.encode(b"a", [PICTURE]), "prompt: .*text, not bytes"),
        (
            lambda client: client.text_encoder.encode("a", [], negative_prompt=b"x"),
            "negative_prompt: .*text, not bytes",
        ),
    ],
)
async def test_every_stage_refuses_what_it_cannot_send(scripted, call, name) -> None:
    with pytest.raises(vtryon.RequestError, match=name):
        call(scripted)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vtryon.Conditioning(ARRAY, []), "embeddings: .*Embeddings, not ndarray"),
        (lambda: vtryon.Embeddings(ARRAY), "positive: .*Tensor, not ndarray"),
        (lambda: vtryon.Embeddings(TENSOR, ARRAY), "negative: .*Tensor, not ndarray"),
        (lambda: conditioning(references=TENSOR), "references: .*list of tensors, not Tensor"),
        (lambda: conditioning(references=[ARRAY]), r"references\[0\]: .*Tensor, not ndarray"),
        (lambda: conditioning(noise=ARRAY), "noise: .*Tensor, not ndarray"),
        (lambda: conditioning(resume_latents=3), "resume_latents: .*Tensor, not int"),
        (lambda: vtryon.Tensor(ARRAY, b""), "spec: .*TensorSpec, not ndarray"),
        (lambda: vtryon.Tensor(TENSOR.spec, ARRAY), "data: .*bytes, not ndarray"),
        (lambda: vtryon.Tensor.from_numpy("x"), "arrays of <U1"),
        (lambda: vtryon.Tensor.from_numpy([[1], [1, 2]]), "array: .*NumPy array, not list"),
    ],
)
def test_what_stages_are_given_is_made_of_tensors(make, said) -> None:
    with pytest.raises(vtryon.RequestError, match=said):
        make()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target": None}, "target is text, not NoneType"),
        ({"target": 50050}, "target is text, not int"),
        ({"tls": True}, r"tls: takes a vtryon\.Tls or None, not bool"),
        ({"tls": "ca.crt"}, "tls: .*not str"),
        ({"token": b"abc"}, "token is text, not bytes"),
        ({"token": 7}, "token is text, not int"),
        ({"retry": None}, "retry: .*RetryPolicy, not NoneType"),
        ({"retry": 3}, "retry: .*RetryPolicy, not int"),
    ],
)
def test_a_client_refuses_a_connection_of_other_types(arguments, said) -> None:
    with pytest.raises(vtryon.SettingsError, match=said):
        vtryon.Client(**{"target": "127.0.0.1:1", **arguments})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vtryon.Tls(ca_path=3), r"tls\.ca_path: takes a path, not int"),
        (lambda: vtryon.Tls(key_path=b"k"), r"tls\.key_path: takes a path, not bytes"),
        (lambda: vtryon.Tls(server_name=3), r"tls\.server_name: takes text, not int"),
        (lambda: vtryon.RetryPolicy(max_wait_seconds="5"), r"max_wait_seconds: .*number, not str"),
        (lambda: vtryon.RetryPolicy(max_wait_seconds=float("nan")), "at least 0, not nan"),
        (lambda: vtryon.RetryPolicy(connect_seconds=-1), "connect_seconds: .*at least 0, not -1"),
        (lambda: vtryon.RetryPolicy(breaks=True), "breaks: .*whole number, not bool"),
        (lambda: vtryon.RetryPolicy(breaks=1.5), "breaks: .*whole number, not float"),
        (lambda: vtryon.RetryPolicy(overload="no"), "overload: takes True or False, not str"),
    ],
)
def test_settings_of_a_connection_are_checked_by_name(make, said) -> None:
    with pytest.raises(vtryon.SettingsError, match=said):
        make()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"resume": "3"}, "resume"),
        ({"resume": vtryon.ResumePoint(step="3")}, "resume.step"),
        ({"resume_every": "3"}, "resume_every"),
        ({"resume_every": None}, "resume_every"),
        ({"resume_latents": np.zeros(3)}, "resume_latents"),
    ],
)
async def test_a_wrong_place_to_go_on_from_is_refused_at_once(scripted, arguments, name) -> None:
    with pytest.raises(vtryon.RequestError) as caught:
        scripted.try_on(PICTURE, PICTURE, **arguments)
    assert names(caught.value) == [name]


@pytest.mark.parametrize("tenant", [None, 0, b"acme"])
async def test_a_tenant_is_text(scripted, tenant) -> None:
    with pytest.raises(vtryon.RequestError, match="tenant: "):
        scripted.acting_for(tenant)


@pytest.mark.parametrize("seconds", [None, "5", True])
async def test_waiting_until_ready_takes_seconds(scripted, seconds) -> None:
    with pytest.raises(vtryon.RequestError, match=r"timeout_seconds: .*positive number"):
        await scripted.wait_ready(seconds)


def conditioning(*, references=(), **other) -> vtryon.Conditioning:
    return vtryon.Conditioning(vtryon.Embeddings(TENSOR), references, **other)


ARRAY = np.zeros((16, 2, 2), np.float32)
START = vtryon.SampleStart()


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
