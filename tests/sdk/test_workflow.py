"""ComfyUI's graphs: its own published templates, both formats, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
from operator import sub
from pathlib import Path

import comfyui_workflow_templates_json
import numpy as np
import pytest
from tests.support.processes import VTRYON

import vtryon
from vtryon import types
from vtryon.options import TryOnArguments, make_options
from vtryon.sampling_options import MAX_STEPS, MAX_TRUE_CFG_SCALE
from vtryon.schedules import denoised_sigmas
from vtryon.types import GuidanceNorm, Lora, Numerics, Profile
from vtryon.workflow.graph import Graph
from vtryon.workflow.meaning import Reading
from vtryon.workflow.request import WorkflowRequest
from vtryon_services.engine.numerics import resolve
from vtryon_services.validation.ranges import check_options

TEMPLATES = Path(comfyui_workflow_templates_json.__file__).parent / "templates"
QWEN = sorted(path.stem for path in TEMPLATES.glob("*wen*") if path.suffix == ".json")
IMPORTED = {
    "image_qwen_image_edit_2511": (40, 4.0, 3.1, True, 2),
    "image_qwen_image_edit_2511_int8": (40, 4.0, 3.1, True, 1),
    "image_qwen_image_edit_2509": (4, 1.0, 3.0, False, 1),
    "image_qwen_image_edit_2509_relight": (4, 1.0, 3.0, False, 1),
}


def read(name: str, *without: str) -> WorkflowRequest:
    content = json.loads((TEMPLATES / f"{name}.json").read_text())
    return Reading(Graph.read(content), without).read()


@pytest.mark.parametrize("name", IMPORTED)
def test_published_templates_are_read(name: str) -> None:
    with pytest.raises(vtryon.RequestError, match=r"FluxKontextImageScale .* keep their shape"):
        read(name)
    request = read(name, "FluxKontextImageScale")
    steps, scale, shift, zero_cond_t, pictures = IMPORTED[name]
    options = request.options
    assert (options["steps"], options["true_cfg_scale"]) == (steps, scale)
    assert options["numerics"] == Numerics(
        profile=Profile.COMFY, shift=shift, guidance_norm=GuidanceNorm.X0
    )
    assert (request.zero_cond_t, len(request.pictures)) == (zero_cond_t, pictures)
    assert set(request.models) == {"transformer", "text_encoder", "vae"}
    assert ("negative_prompt" in options) == (scale > 1)
    assert request.prompt


def test_loras_and_joined_texts_are_read() -> None:
    request = read("image_qwen_image_edit_2509_relight", "FluxKontextImageScale")
    assert [lora.name.split(".")[0] for lora in request.options["loras"]] == [
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
        assert request.options["steps"]
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
    assert request == WorkflowRequest(
        prompt="wear it",
        options=TryOnArguments(
            negative_prompt="blur",
            steps=4,
            true_cfg_scale=2.5,
            seed=7,
            numerics=Numerics(profile=Profile.COMFY, shift=3.0, guidance_norm=GuidanceNorm.X0),
        ),
        pictures=["person.png", "garment.png"],
        models={"vae": "v", "transformer": "q.safetensors", "text_encoder": "c"},
    )


def test_sizes_and_loras() -> None:
    graph = api_graph(n11={"latent_image": ["14", 0], "model": ["15", 0]})
    sized = {"width": 768, "height": 1024, "batch_size": 1}
    graph["14"] = {"class_type": "EmptySD3LatentImage", "inputs": sized}
    lora = {"model": ["3", 0], "lora_name": "quick", "strength_model": 0.5}
    graph["15"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
    request = Reading(Graph.read(graph)).read()
    assert (request.options["width"], request.options["height"]) == (768, 1024)
    assert request.options["loras"] == (Lora("quick", 0.5),)
    again = {"model": ["15", 0], "lora_name": "quick", "strength_model": 0.25}
    graph["16"] = {"class_type": "LoraLoaderModelOnly", "inputs": again}
    graph["11"]["inputs"]["model"] = ["16", 0]
    assert Reading(Graph.read(graph)).read().options["loras"] == (Lora("quick", 0.75),)
    again["lora_name"] = "other\\quick.safetensors"
    with pytest.raises(vtryon.RequestError, match="has the same name"):
        Reading(Graph.read(graph)).read()


REFUSED = {
    "steps that are a fraction": ({"n11": {"steps": 2.9}}, "steps 2.9 is not a whole number"),
    "steps that are text": ({"n11": {"steps": "4"}}, "steps '4' is not a whole number"),
    "too many steps": ({"n11": {"steps": 201}}, "steps 201 is not within 1 to 200"),
    "a seed of 65 bits": ({"n11": {"seed": 2**64}}, "seed 18446744073709551616 is not within"),
    "a negative seed": ({"n11": {"seed": -1}}, "seed -1 is not within"),
    "a scale that is out of range": ({"n11": {"cfg": 31}}, "cfg 31 is not within 0 to 30"),
    "a scale below 1": ({"n11": {"cfg": 0.5}}, "guidance below 1 is not supported"),
    "a scale beyond floats": ({"n11": {"cfg": 10**400}}, "is not within 0 to 30"),
    "a NaN for a scale": ({"n11": {"cfg": float("nan")}}, "cfg nan is not a number"),
    "a shift that is out of range": ({"n2": {"shift": 0}}, "shift 0 is not within 0.01 to 100"),
    "a denoise of nothing": ({"n11": {"denoise": 0.0}}, "denoise 0: nothing"),
    "a prompt that is a list": ({"n8": {"prompt": ["wear it"]}}, "is not text"),
    "no prompt but null": ({"n8": {"prompt": None}}, "prompt None is not text"),
    "a long prompt": ({"n8": {"prompt": "x" * 2001}}, "prompt of 2001 characters"),
    "a value that nothing reads": ({"n11": {"noise_device": "gpu"}}, "noise_device: no counter"),
    "a picture that nothing reads": ({"n8": {"image4": ["6", 0]}}, "image4: no counterpart"),
    "another output of a node": ({"n12": {"samples": ["11", 1]}}, "output 1 as samples"),
    "a norm before guidance": ({"n3": {"pre_cfg": True}}, "only 1 after guidance"),
    "a norm by text": ({"n3": {"pre_cfg": "no"}}, "pre_cfg 'no' is not true or false"),
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


GRID = [*(number / 20 for number in range(1, 21)), 0.01, 0.33, 0.667, 0.99, 0.9999, 0.99995]


def comfyui_sigmas(steps: int, denoise: float, shift: float) -> list[float]:
    """What ComfyUI's KSampler runs, written down apart from the code under test."""
    total = steps if denoise > 0.9999 else int(steps / denoise)
    table = [shift * t / 1000 / (1 + (shift - 1) * t / 1000) for t in range(1, 1001)]
    stride = len(table) / total
    ran = range(total)[-steps:]
    return [table[-(1 + int(x * stride))] for x in ran] + [0.0]


def test_a_denoise_runs_exactly_comfyuis_steps_for_every_pair() -> None:
    shift = 3.0
    for steps in range(1, 201):
        for denoise in GRID:
            found = [*denoised_sigmas(steps, denoise, shift), 0.0]
            wanted = comfyui_sigmas(steps, denoise, shift)
            assert len(found) == steps + 1
            assert max(map(abs, map(sub, found, wanted))) < 1e-12, (steps, denoise)


@pytest.mark.parametrize(
    ("steps", "denoise"), [(10, 0.5), (20, 0.6), (20, 0.35), (8, 0.75), (4, 0.3), (200, 0.05)]
)
def test_a_graphs_denoise_becomes_the_sigmas_that_run(steps: int, denoise: float) -> None:
    graph = api_graph(n2={"shift": 3.1}, n11={"steps": steps, "denoise": denoise})
    options = Reading(Graph.read(graph)).read().options
    assert [*options["sigmas"], 0.0] == pytest.approx(comfyui_sigmas(steps, denoise, 3.1))
    assert (options["steps"], len(options["sigmas"])) == (steps, steps)
    check_options(make_options(**options))


def test_a_denoise_that_drops_no_step_leaves_the_schedule() -> None:
    request = Reading(Graph.read(api_graph(n11={"denoise": 0.99}))).read()
    assert "sigmas" not in request.options


@pytest.mark.parametrize("seed", [0, 2**53, 2**63, 2**64 - 1])
def test_every_seed_of_comfyui_is_taken(seed: int) -> None:
    request = Reading(Graph.read(api_graph(n11={"seed": seed}))).read()
    assert request.options["seed"] == seed


def test_the_limits_of_an_import_are_those_of_a_request() -> None:
    edges = {"steps": MAX_STEPS, "true_cfg_scale": MAX_TRUE_CFG_SCALE}
    check_options(make_options(**edges))
    for name, value in edges.items():
        with pytest.raises(vtryon.RequestError, match=name):
            check_options(make_options(**{name: value + 1}))
    for shift in (types.MIN_SHIFT, types.MAX_SHIFT):
        resolve(Numerics(Profile.COMFY, shift=shift))
    with pytest.raises(vtryon.RequestError, match="shift"):
        resolve(Numerics(Profile.COMFY, shift=types.MAX_SHIFT + 1))


def with_preview(*source: object) -> dict:
    graph = api_graph()
    graph["14"] = {"class_type": "PreviewImage", "inputs": {"images": list(source)}}
    return graph


def test_a_preview_beside_the_result_is_left_out_when_asked() -> None:
    graph = Graph.read(with_preview("6", 0))
    with pytest.raises(vtryon.RequestError, match="--without PreviewImage"):
        Reading(graph).read()
    reading = Reading(graph, ["PreviewImage"])
    assert reading.read().prompt == "wear it"
    [line] = [line for line in reading.lines if line.node == "14"]
    assert line.becomes == "left out, as was asked"
    request = Reading(Graph.read(with_preview("12", 0))).read()  # the same picture
    assert request.options["steps"] == 4


def test_a_type_that_is_not_in_the_graph_cannot_be_left_out() -> None:
    with pytest.raises(vtryon.RequestError, match="--without PreviewImages: the graph has no"):
        Reading(Graph.read(api_graph()), ["PreviewImages"])


def editor_graph() -> dict:
    """The same graph in the editor's format."""
    nodes, links = [], []
    for name, node in api_graph().items():
        inputs = []
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                links.append([len(links) + 1, int(value[0]), value[1], int(name), len(inputs), "*"])
                inputs.append({"name": key, "type": "*", "link": len(links)})
        written = {key: value for key, value in node["inputs"].items() if type(value) is not list}
        outputs = [{"type": "*"}]
        own = {"id": int(name), "type": node["class_type"], "inputs": inputs, "outputs": outputs}
        nodes.append({**own, "widgets_values": written})
    return {"nodes": nodes, "links": links}


def test_saves_that_are_bypassed_or_muted_save_nothing() -> None:
    for mode in (2, 4):
        graph = editor_graph()
        graph["links"].append([99, 6, 0, 20, 0, "*"])
        preview = {"id": 20, "type": "SaveImage", "mode": mode, "inputs": [{"name": "images"}]}
        preview["inputs"][0]["link"] = 99
        graph["nodes"].insert(0, preview)
        assert Reading(Graph.read(graph)).read().pictures == ["person.png", "garment.png"]


def subgraphs(values: list, proxies: list, mode: int = 0) -> dict:
    """A text node within a subgraph within a subgraph, and two instances of the outer one."""
    text = {"id": 1, "type": "PrimitiveString", "widgets_values": ["inside"], "outputs": []}
    text["inputs"] = [{"name": "value", "type": "STRING", "widget": {"name": "value"}, "link": 1}]
    inner = {"id": "inner", "nodes": [text], "inputs": [{"name": "text", "type": "STRING"}]}
    inner["links"] = [[1, -10, 0, 1, 0, "STRING"], [2, 1, 0, -20, 0, "STRING"]]
    node = {"id": 5, "type": "inner", "inputs": [{"name": "text", "type": "STRING"}]}
    outer = {"id": "outer", "nodes": [node], "inputs": [], "links": [[1, 5, 0, -20, 0, "STRING"]]}
    first = {"id": 7, "type": "outer", "inputs": [], "mode": mode, "widgets_values": values}
    first["properties"] = {"proxyWidgets": proxies}
    second = {"id": 8, "type": "outer", "inputs": []}
    definitions = {"subgraphs": [inner, outer]}
    return {"nodes": [first, second], "links": [], "definitions": definitions}


def test_values_promoted_through_subgraphs_reach_their_node_and_no_other_instance() -> None:
    graph = Graph.read(subgraphs(["outside"], [["5", "text"]]))
    assert graph.nodes["7:5:1"].values == {"value": "outside"}
    assert graph.nodes["8:5:1"].values == {"value": "inside"}


def test_values_of_a_subgraphs_own_inputs_reach_the_nodes_that_they_feed() -> None:
    content = subgraphs([], [])
    content["nodes"] = [
        {"id": 9, "type": "inner", "inputs": [{"name": "text"}], "widgets_values": ["given"]},
        {
            "id": 10,
            "type": "inner",
            "inputs": [{"name": "text"}],
            "widgets_values": ["given too"],
            "properties": {"proxyWidgets": [["-1", "text"]]},
        },
    ]
    graph = Graph.read(content)
    assert graph.nodes["9:1"].values == {"value": "given"}
    assert graph.nodes["10:1"].values == {"value": "given too"}


@pytest.mark.parametrize(
    ("values", "proxies", "said"),
    [
        (["a", "b"], [["5", "text"]], "2 values for 1 widgets"),
        (["a"], [["5", "colour"]], "no widget 'colour'"),
        (["a"], [["-1", "colour"]], "no input 'colour'"),
    ],
)
def test_values_of_a_subgraph_are_never_lost(values: list, proxies: list, said: str) -> None:
    with pytest.raises(vtryon.RequestError, match=said):
        Graph.read(subgraphs(values, proxies))


@pytest.mark.parametrize(("mode", "on"), [(2, False), (4, False), (0, True)])
def test_a_subgraph_that_is_switched_off_does_not_run(mode: int, on: bool) -> None:
    graph = Graph.read(subgraphs([], [], mode))
    assert ("7:5:1" in graph.nodes) is on
    assert "8:5:1" in graph.nodes


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("levels", "width"), [(4, 20), (12, 10), (17, 1)])
def test_subgraphs_of_subgraphs_are_counted_while_they_are_expanded(
    levels: int, width: int
) -> None:
    definitions = [
        {
            "id": f"s{level}",
            "nodes": [
                {"id": number, "type": f"s{level + 1}" if level + 1 < levels else "Note"}
                for number in range(width)
            ],
        }
        for level in range(levels)
    ]
    content = {"nodes": [{"id": 1, "type": "s0"}], "definitions": {"subgraphs": definitions}}
    with pytest.raises(vtryon.RequestError, match=r"the limit is 5000|more than 16 deep"):
        Graph.read(content)


@pytest.mark.timeout(20)
def test_texts_that_double_or_never_end_are_refused() -> None:
    doubled = {
        str(number): {
            "class_type": "StringConcatenate",
            "inputs": {"string_a": [str(number + 1), 0], "string_b": [str(number + 1), 0]},
        }
        for number in range(100, 140)
    }
    for last in ({"value": "ab"}, {"value": ["100", 0]}):
        graph = api_graph(n8={"prompt": ["100", 0]}) | doubled
        graph["140"] = {"class_type": "PrimitiveString", "inputs": last}
        with pytest.raises(vtryon.RequestError, match=r"more than 100000|more than 64"):
            Reading(Graph.read(graph)).read()
    chain = {
        str(number): {"class_type": "Reroute", "inputs": {"x": [str(number + 1), 0]}}
        for number in range(100, 3000)
    }
    with pytest.raises(vtryon.RequestError, match="node 3000"):
        Reading(Graph.read(api_graph(n12={"samples": ["100", 0]}) | chain)).read()


def test_a_seed_that_its_node_draws_each_time_is_none() -> None:
    graph = api_graph(n11={"seed": ["14", 0]})
    inputs = {"value": 5, "control_after_generate": "randomize"}
    graph["14"] = {"class_type": "PrimitiveInt", "inputs": inputs}
    assert Reading(Graph.read(graph)).read().options["seed"] is None
    inputs["control_after_generate"] = "fixed"
    assert Reading(Graph.read(graph)).read().options["seed"] == 5


def test_the_precision_of_a_graph_and_its_other_sizes_are_said() -> None:
    graph = Graph.read(api_graph(n1={"weight_dtype": "fp8_e4m3fn"}))
    reading = Reading(graph)
    assert reading.read().weight_dtype == "fp8_e4m3fn"
    said = [line.becomes for line in reading.lines]
    assert any("to multiples of 16, where ComfyUI rounds to 8" in one for one in said)


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
