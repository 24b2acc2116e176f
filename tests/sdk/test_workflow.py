"""ComfyUI's graphs: its own published templates, both formats, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import comfyui_workflow_templates_json
import numpy as np
import pytest
from tests.support.processes import VTRYON

import vtryon
from vtryon.types import GuidanceNorm, Numerics, Profile
from vtryon.workflow.graph import Graph
from vtryon.workflow.meaning import Lora, Reading, Request

TEMPLATES = Path(comfyui_workflow_templates_json.__file__).parent / "templates"
QWEN = sorted(path.stem for path in TEMPLATES.glob("*wen*") if path.suffix == ".json")
IMPORTED = {
    "image_qwen_image_edit_2511": (40, 4.0, 3.1, True, 2),
    "image_qwen_image_edit_2511_int8": (40, 4.0, 3.1, True, 1),
    "image_qwen_image_edit_2509": (4, 1.0, 3.0, False, 1),
    "image_qwen_image_edit_2509_relight": (4, 1.0, 3.0, False, 1),
}


def read(name: str, *without: str) -> Request:
    content = json.loads((TEMPLATES / f"{name}.json").read_text())
    return Reading(Graph.read(content), without).read()


@pytest.mark.parametrize("name", IMPORTED)
def test_published_templates_are_read(name: str) -> None:
    with pytest.raises(vtryon.RequestError, match=r"FluxKontextImageScale .* keep their shape"):
        read(name)
    request = read(name, "FluxKontextImageScale")
    steps, scale, shift, zero_cond_t, pictures = IMPORTED[name]
    assert (request.steps, request.true_cfg_scale) == (steps, scale)
    assert request.numerics == Numerics(
        profile=Profile.COMFY, shift=shift, guidance_norm=GuidanceNorm.X0
    )
    assert (request.zero_cond_t, len(request.pictures)) == (zero_cond_t, pictures)
    assert set(request.models) == {"transformer", "text_encoder", "vae"}
    assert (request.negative_prompt is not None) == (scale > 1)
    assert request.prompt


def test_loras_and_joined_texts_are_read() -> None:
    request = read("image_qwen_image_edit_2509_relight", "FluxKontextImageScale")
    assert [lora.name.split(".")[0] for lora in request.loras] == [
        "Qwen-Image-Edit-2509-Lightning-4steps-V1",
        "Qwen-Image-Edit-2509-Relight",
    ]
    assert request.prompt.startswith("重新照明, relight the image")


@pytest.mark.parametrize("name", [name for name in QWEN if name not in IMPORTED])
def test_other_templates_are_read_or_refused_by_name(name: str) -> None:
    try:
        request = read(name)
    except vtryon.RequestError as error:
        assert "saves no picture" in error.message or "(node " in error.message
    else:
        assert request.steps
        assert request.pictures


def api_graph(**changes: dict) -> dict:
    """A graph in the API's format, as ComfyUI saves it."""
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "q.safetensors"}},
        "2": {"class_type": "ModelSamplingAuraFlow", "inputs": {"model": ["1", 0], "shift": 3.0}},
        "3": {"class_type": "CFGNorm", "inputs": {"model": ["2", 0], "strength": 1.0}},
        "4": {"class_type": "CLIPLoader", "inputs": {"clip_name": "c", "type": "qwen_image"}},
        "5": {"class_type": "VAELoader", "inputs": {"vae_name": "v"}},
        "6": {"class_type": "LoadImage", "inputs": {"image": "person.png"}},
        "7": {"class_type": "LoadImage", "inputs": {"image": "garment.png"}},
        "8": {
            "class_type": "TextEncodeQwenImageEditPlus",
            "inputs": {
                "clip": ["4", 0],
                "vae": ["5", 0],
                "prompt": "wear it",
                "image1": ["6", 0],
                "image2": ["7", 0],
            },
        },
        "9": {
            "class_type": "TextEncodeQwenImageEditPlus",
            "inputs": {
                "clip": ["4", 0],
                "vae": ["5", 0],
                "prompt": "blur",
                "image1": ["6", 0],
                "image2": ["7", 0],
            },
        },
        "10": {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": ["5", 0]}},
        "11": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["3", 0],
                "positive": ["8", 0],
                "negative": ["9", 0],
                "latent_image": ["10", 0],
                "seed": 7,
                "steps": 4,
                "cfg": 2.5,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "12": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["5", 0]}},
        "13": {"class_type": "SaveImage", "inputs": {"images": ["12", 0]}},
    }
    for node, inputs in changes.items():
        graph[node.removeprefix("n")]["inputs"].update(inputs)
    return graph


def test_the_apis_format() -> None:
    request = Reading(Graph.read({"prompt": api_graph()})).read()
    assert request == Request(
        prompt="wear it",
        negative_prompt="blur",
        steps=4,
        true_cfg_scale=2.5,
        seed=7,
        numerics=Numerics(profile=Profile.COMFY, shift=3.0, guidance_norm=GuidanceNorm.X0),
        pictures=["person.png", "garment.png"],
        models={"vae": "v", "transformer": "q.safetensors", "text_encoder": "c"},
    )


def test_sizes_shares_of_the_schedule_and_loras() -> None:
    graph = api_graph(n11={"denoise": 0.5, "steps": 10})
    request = Reading(Graph.read(graph)).read()
    assert (request.steps, request.strength) == (20, 0.5)
    graph = api_graph(n11={"latent_image": ["14", 0], "model": ["15", 0]})
    sized = {"width": 768, "height": 1024, "batch_size": 1}
    graph["14"] = {"class_type": "EmptySD3LatentImage", "inputs": sized}
    lora = {"model": ["3", 0], "lora_name": "quick", "strength_model": 0.5}
    graph["15"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
    request = Reading(Graph.read(graph)).read()
    assert (request.width, request.height) == (768, 1024)
    assert request.loras == [Lora("quick", 0.5)]


REFUSED = {
    "another sampler": ({"n11": {"sampler_name": "dpmpp_2m"}}, "sampler_name 'dpmpp_2m'"),
    "another scheduler": ({"n11": {"scheduler": "beta"}}, "scheduler 'beta'"),
    "a weaker norm": ({"n3": {"strength": 0.5}}, "strength 0.5"),
    "another text encoder": ({"n4": {"type": "flux"}}, "type 'flux'"),
    "another picture to start from": ({"n10": {"pixels": ["7", 0]}}, "this is another"),
    "other pictures to keep away from": ({"n9": {"image2": ["6", 0]}}, "other pictures"),
    "a node that is not there": ({"n12": {"samples": ["99", 0]}}, "node 99"),
    "a circle": ({"n3": {"model": ["3", 0]}}, "CFGNorm"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.timeout(5)
def test_what_cannot_be_honoured_is_named(name: str) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(vtryon.RequestError, match=said.replace("(", r"\(")):
        Reading(Graph.read(api_graph(**changes))).read()


def test_everything_that_is_refused_is_named_at_once() -> None:
    graph = api_graph(n11={"sampler_name": "heun"}, n3={"strength": 2.0}, n4={"type": "sdxl"})
    with pytest.raises(vtryon.RequestError) as caught:
        Reading(Graph.read(graph)).read()
    for said in ("KSampler (node 11)", "CFGNorm (node 3)", "CLIPLoader (node 4)"):
        assert said in caught.value.message


@pytest.mark.parametrize("content", [[], {}, 3, {"nodes": [3]}, {"1": {}}, {"1": None}, "x", None])
def test_what_is_no_graph_is_refused(content: object) -> None:
    with pytest.raises(vtryon.RequestError):
        Reading(Graph.read(content)).read()


async def test_the_command_and_the_request_that_it_writes(tmp_path: Path, client, example) -> None:
    graph, request = tmp_path / "graph.json", tmp_path / "request.json"
    graph.write_text(json.dumps(api_graph(n8={"prompt": example.prompt})))
    done = subprocess.run(
        [VTRYON, "workflow", "import", graph, "-o", request], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "guidance norm x0" in done.stderr
    example.person.save(tmp_path / "person.png")
    example.garment.save(tmp_path / "garment.png")
    words = ["try-on", "person.png", "garment.png", "-o", "out.png", "--request", request]
    drawn = subprocess.run([VTRYON, *words], cwd=tmp_path, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    straight = await client.try_on(
        example.person,
        example.garment,
        example.prompt,
        negative_prompt="blur",
        steps=4,
        true_cfg_scale=2.5,
        seed=7,
        numerics=Numerics(profile=Profile.COMFY, shift=3.0, guidance_norm=GuidanceNorm.X0),
    )
    from PIL import Image

    with Image.open(tmp_path / "out.png") as picture:
        difference = np.asarray(picture).astype(int) - straight.picture.to_numpy()
    assert np.abs(difference).max() <= 1
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(api_graph(n11={"scheduler": "beta"})))
    command = [VTRYON, "workflow", "import", bad, "-o", tmp_path / "none.json", "--json"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"]["reason"] == "FIELD_INVALID"
    assert not (tmp_path / "none.json").exists()
