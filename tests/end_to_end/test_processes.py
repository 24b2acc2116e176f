"""Services as processes: each stage its own, buf curl from outside, big payloads, draining."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.pictures import difference, encoded, noise_png, png
from tests.support.processes import ServedMesh, served

import vtryon

BUF = Path(sys.executable).with_name("buf")
MEBIBYTE = 1024 * 1024
STAGES = ("latent-encoder", "text-encoder", "sampling", "decoding")


def targets(*meshes: ServedMesh) -> dict[str, str]:
    """Tell a pipeline where the four stages are."""
    names = [stage.upper().replace("-", "_") for stage in STAGES]
    return {
        f"VTRYON_PIPELINE_{name}_TARGET": mesh.target
        for name, mesh in zip(names, meshes, strict=True)
    }


def buf_curl(address: str, *arguments: str, data: str = "") -> subprocess.CompletedProcess:
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, address]
    return subprocess.run(command, input=data, capture_output=True, text=True, timeout=60)


async def test_every_stage_in_a_process_of_its_own_draws_the_same_picture(client, example) -> None:
    with (
        served("latent-encoder") as latents,
        served("text-encoder") as text,
        served("sampling") as sampling,
        served("decoding") as decoding,
        served(
            "pipeline",
            **targets(latents, text, sampling, decoding),
        ) as pipeline,
    ):
        async with vtryon.Client(pipeline.target) as apart:
            results = [
                await one.try_on(example.person, example.garment, example.prompt, seed=3)
                for one in (apart, client)
            ]
        codes = [mesh.stop() for mesh in (pipeline, latents, text, sampling, decoding)]
    pictures = [result.picture.to_pil() for result in results]
    assert difference(*pictures) <= 1
    assert codes == [0] * 5


def test_reflection_lists_the_services(served_mesh) -> None:
    done = buf_curl(f"http://{served_mesh.target}", "--list-methods")
    assert done.returncode == 0, done.stderr
    assert "vtryon.v1.PipelineService/TryOn" in done.stdout.splitlines()
    assert "vtryon.v1.SamplingService/Sample" in done.stdout.splitlines()


def test_a_try_on_by_buf_curl(served_mesh) -> None:
    picture = png()
    chunk = {"data": base64.b64encode(picture).decode()}
    declared = {"byteLength": str(len(picture)), "image": {}}
    messages = [
        {
            "start": {
                "payloads": [
                    {"kind": "PAYLOAD_KIND_PERSON_IMAGE", **declared},
                    {"kind": "PAYLOAD_KIND_GARMENT_IMAGE", **declared},
                ],
                "options": {"prompt": "wear it", "steps": 2, "seed": "7"},
            }
        },
        {"chunk": {"payload": 0, **chunk}},
        {"chunk": {"payload": 1, **chunk}},
    ]
    address = f"http://{served_mesh.target}/vtryon.v1.PipelineService/TryOn"
    done = buf_curl(address, "-d", "@-", data="\n".join(map(json.dumps, messages)))
    assert done.returncode == 0, done.stderr
    events = stream_of_json(done.stdout)
    assert [next(iter(event)) for event in events[:1] + events[-2:]] == [
        "accepted",
        "chunk",
        "finished",
    ]
    assert events[0]["accepted"]["seed"] == "7"
    assert base64.b64decode(events[-2]["chunk"]["data"]).startswith(b"\x89PNG")


def test_an_inline_try_on_by_buf_curl(served_mesh) -> None:
    request = {"person": base64.b64encode(png()).decode(), "options": {"prompt": "wave"}}
    address = f"http://{served_mesh.target}/vtryon.v1.PipelineService/TryOnInline"
    done = buf_curl(address, "-d", json.dumps(request))
    assert done.returncode == 0, done.stderr
    assert "finished" in stream_of_json(done.stdout)[-1]


def test_a_refusal_is_readable_by_buf_curl(served_mesh) -> None:
    request = {"person": base64.b64encode(png()).decode(), "options": {"steps": 0}}
    address = f"http://{served_mesh.target}/vtryon.v1.PipelineService/TryOnInline"
    done = buf_curl(address, "-d", json.dumps(request))
    assert done.returncode == 8 * 3  # INVALID_ARGUMENT
    said = json.loads(done.stderr)
    assert said["message"].startswith("steps: ")
    details = [base64.b64decode(detail["value"] + "==") for detail in said["details"]]
    assert any(b"FIELD_INVALID" in detail for detail in details)


def stream_of_json(text: str) -> list[dict]:
    decoder, events = json.JSONDecoder(), []
    while text := text.strip():
        event, end = decoder.raw_decode(text)
        events.append(event)
        text = text[end:]
    return events


@pytest.mark.parametrize("mebibytes", [16, 64])
async def test_a_tensor_streams_through_and_is_all_that_is_held(mebibytes: int) -> None:
    with served("decoding", "--backend", "scripted") as mesh:
        side = int((mebibytes * MEBIBYTE / 4 / 16) ** 0.5)
        latents = vtryon.Tensor.from_numpy(np.ones((16, side, side), np.float32))
        small = vtryon.Tensor.from_numpy(np.ones((16, 256, 256), np.float32))
        async with vtryon.Channel(mesh.target) as channel:
            decoding = vtryon.Decoding(channel)
            await decoding.decode(small)
            before = mesh.memory_kib("VmHWM")
            # The shape is refused only after the tensor has been received and looked at.
            broken = np.array(latents.to_numpy())
            broken[-1, -1, -1] = np.nan
            with pytest.raises(vtryon.RequestError) as caught:
                await decoding.decode(vtryon.Tensor.from_numpy(broken))
            assert caught.value.reason is vtryon.Reason.TENSOR_NOT_FINITE
            held = (mesh.memory_kib("VmHWM") - before) / 1024 - mebibytes
    assert held < 8, f"{held:.1f} MiB beyond the tensor"


async def test_a_pipeline_relays_a_large_picture_without_holding_it() -> None:
    large = noise_png(2000, 2100)
    size = len(large) / MEBIBYTE
    assert size > 12
    with (
        served(
            "latent-encoder", "text-encoder", "sampling", "decoding", "--backend", "scripted"
        ) as stages,
        served(
            "pipeline",
            **targets(stages, stages, stages, stages),
            VTRYON_MAX_PAYLOAD_BYTES=str(64 * MEBIBYTE),
        ) as pipeline,
    ):
        async with vtryon.Client(pipeline.target) as client:
            await client.try_on(png(), png(), steps=1)
            before = pipeline.memory_kib("VmHWM")
            await client.try_on(large, large, steps=1)
            grown = (pipeline.memory_kib("VmHWM") - before) / 1024
    assert grown < 8 * 4, f"the pipeline grew by {grown:.1f} MiB over four relays"


async def test_sigterm_lets_a_running_request_finish() -> None:
    with served("all", "--backend", "scripted", VTRYON_SCRIPTED_SECONDS="0.05") as mesh:
        async with vtryon.Client(mesh.target) as client:
            run = client.try_on(png(), png(), steps=10)
            async for event in run:
                if isinstance(event, vtryon.StepFinished) and event.step == 1:
                    mesh.process.terminate()
            assert (await run).picture.data
        assert mesh.process.wait(30) == 0


async def test_pictures_in_every_format_come_through_a_served_mesh(client, example) -> None:
    originals = [encoded(example.person, kind, quality=95) for kind in ("PNG", "WEBP", "JPEG")]
    for data in originals:
        assert (await client.try_on(data, example.garment, steps=1)).picture.data
