"""The request of a graph for Qwen-Image-Edit, read from the picture back to its sources.

A node or a value that can't be honoured is named and rejected, never dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PureWindowsPath

from vtryon.errors import RequestError
from vtryon.sampling_options import MAX_STEPS, MAX_TRUE_CFG_SCALE, guides
from vtryon.schedules import denoised_sigmas
from vtryon.seeds import MAX_SEED
from vtryon.types import (
    MAX_LORA_STRENGTH,
    MAX_LORAS,
    MAX_PROMPT_CHARACTERS,
    MAX_SHIFT,
    MAX_SIDE,
    MIN_SHIFT,
    SIDE_MULTIPLE,
    GuidanceNorm,
    Lora,
    Numerics,
    Profile,
)
from vtryon.workflow.graph import Graph
from vtryon.workflow.nodes import Node
from vtryon.workflow.request import NodeReport, WorkflowRequest
from vtryon.workflow.walk import ALL, Walk

_SAVES = ("SaveImage", "PreviewImage", "SaveImageAdvanced", "SaveImageWebsocket")
_WHY_NOT = {
    "FluxKontextImageScale": "it crops the picture to one of 17 sizes, and here pictures keep "
    "their shape; to do without: --without FluxKontextImageScale",
    "ImageScaleToTotalPixels": "pictures are scaled to the checkpoint's own size here; to do "
    "without: --without ImageScaleToTotalPixels",
    "TextEncodeQwenImageEdit": "the template of the first Qwen-Image-Edit; there is that of "
    "TextEncodeQwenImageEditPlus",
}
_METHODS = {"index", "index_timestep_zero"}
_NO_EFFECT = {
    **dict.fromkeys(_SAVES, ALL),
    "CLIPLoader": frozenset({"device"}),
    "LoadImage": frozenset({"upload"}),
}


class Reading(Walk):
    """One reading of a graph.

    Args:
        graph: the graph to read.
        without: types of nodes to leave out although the picture will differ.

    Raises:
        RequestError: the graph has no node of a type in `without`.
    """

    def __init__(self, graph: Graph, without: Sequence[str] = ()) -> None:
        super().__init__(graph, without, _WHY_NOT)
        self.request = WorkflowRequest()
        self._loras: dict[str, PureWindowsPath] = {}

    @property
    def notes(self) -> list[str]:
        """Requirements of the request on the server."""
        names = ", ".join(lora.name for lora in self.request.options.get("loras", ()))
        if not names:
            return []
        words = (
            f"the graph applies the LoRAs {names}: the server needs their files under these names "
            "(`vtryon serve … --lora FILE`), or else --ignore-loras and a checkpoint with them "
            "merged"
        )
        return [words]

    def read(self) -> WorkflowRequest:
        """Read the whole graph.

        Raises:
            RequestError: names every node and value that can't be honoured.
        """
        saves = self._of_type(*_SAVES)
        if not saves:
            raise RequestError(
                f"the graph saves no picture: no {', '.join(_SAVES)} is there and switched on"
            )
        result = next(filter(self._saves_result, saves), saves[0])
        self._attempt(lambda: self._output(result))
        for save in saves:
            if save is not result:
                self._attempt(lambda save=save: self._other_save(save, result))  # type: ignore[misc]
        for extra in self._of_type("KSampler"):
            if extra.id not in self._lines:
                self._refuse(extra, "a try-on has one sampler, and this is another")
        self._refuse_unread(_NO_EFFECT)
        if refused := [line for line in self._lines.values() if line.refused]:
            named = "; ".join(f"{one.type} (node {one.node}): {one.becomes}" for one in refused)
            raise RequestError(f"can't be honoured: {named}")
        return self.request

    def _saves_result(self, save: Node) -> bool:
        source = save.links.get("images")
        found = self._graph.nodes.get(source.node) if source else None
        return found is not None and found.type == "VAEDecode"

    def _other_save(self, save: Node, result: Node) -> None:
        if self._follow(save, "images") is not self._follow(result, "images"):
            raise self._refuse(
                save,
                "a try-on gives one picture, and this would be another; "
                f"to do without: --without {save.type}",
            )
        self._tell(save, "the result, once more")

    def _output(self, save: Node) -> None:
        self._tell(save, "the result")
        decode = self._source(save, "images", ["VAEDecode"])
        self._tell(decode, "decoding")
        sampler = self._source(decode, "samples", ["KSampler"])
        self._tell(sampler, "sampling")
        for part in (
            lambda: self._vae(decode),
            lambda: self._sampler(sampler),
            lambda: self._model(sampler),
            lambda: self._texts(sampler),
            lambda: self._latents(sampler),
        ):
            self._attempt(part)

    def _sampler(self, node: Node) -> None:
        options = self.request.options
        name, scheduler = self._value(node, "sampler_name"), self._value(node, "scheduler")
        if name != "euler":
            raise self._refuse(node, f"sampler_name {name!r}: only euler is supported")
        if scheduler != "simple":
            raise self._refuse(node, f"scheduler {scheduler!r}: only simple is supported")
        steps = options["steps"] = self._whole(node, "steps", 1, MAX_STEPS)
        cfg = options["true_cfg_scale"] = self._cfg(node)
        if cfg < 1:
            raise self._refuse(
                node, f"cfg {cfg:g}: guidance below 1 is not supported; 1 disables it"
            )
        options["seed"], said = self._seed(node)
        words = f"steps {steps}, cfg {cfg:g}, euler, simple, {said}"
        denoise = self._denoise(node)
        if denoise < 1:
            words += f", the last {steps} steps of {int(steps / denoise)}"
        self._lines[node.id] = NodeReport(node.id, node.type, words)

    def _cfg(self, node: Node) -> float:
        return self._number(node, "cfg", 0, MAX_TRUE_CFG_SCALE)

    def _seed(self, node: Node) -> tuple[int | None, str]:
        seed = self._whole(node, "seed", 0, MAX_SEED, 0)
        self._use(node, "control_after_generate")
        if self._is_drawn(node, "seed"):
            return None, "a new seed each time"
        return seed, f"seed {seed}"

    def _denoise(self, node: Node) -> float:
        denoise = self._number(node, "denoise", 0, 1, 1.0)
        if denoise <= 0:
            raise self._refuse(node, f"denoise {denoise:g}: nothing would be sampled")
        return denoise

    def _model(self, sampler: Node) -> None:
        """Walk the patches of the model, the last one first."""
        options, node = self.request.options, sampler
        norm, shift = GuidanceNorm.NONE, None
        known = ["CFGNorm", "LoraLoaderModelOnly", "ModelSamplingAuraFlow", "UNETLoader"]
        seen: set[str] = set()
        while (node := self._source(node, "model", known)).type != "UNETLoader":
            if node.id in seen:
                raise self._refuse(node, "the model goes round in a circle")
            seen.add(node.id)
            if node.type == "CFGNorm":
                norm = self._norm(node)
            elif node.type == "ModelSamplingAuraFlow":
                own = self._number(node, "shift", MIN_SHIFT, MAX_SHIFT)
                unused = "nothing: a node after it sets the shift"
                self._tell(node, f"shift {own:g}" if shift is None else unused)
                shift = own if shift is None else shift
            else:
                self._lora(node)
        self._named(node, "unet_name", "transformer")
        self._weight_dtype(node)
        if shift is None:
            raise self._refuse(node, "no ModelSamplingAuraFlow says which shift it is sampled with")
        options["numerics"] = Numerics(profile=Profile.COMFY, shift=shift, guidance_norm=norm)
        steps, denoise = options.get("steps"), self._denoise(sampler)
        if steps and int(steps / denoise) > steps:
            options["sigmas"] = denoised_sigmas(steps, denoise, shift)

    def _lora(self, node: Node) -> None:
        path = PureWindowsPath(self._text(node, "lora_name"))  # which reads both separators
        name = path.name.removesuffix(".safetensors")
        strength = self._number(node, "strength_model", -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH, 1.0)
        if not strength:
            return self._tell(node, "nothing: its strength is 0")
        if self._loras.setdefault(name, path) != path:
            raise self._refuse(node, f"lora_name {path}: {self._loras[name]} has the same name")
        applied = {
            lora.name: lora.strength or 0.0 for lora in self.request.options.get("loras", ())
        }
        applied = {name: 0.0} | applied  # the nodes are read from the last to the first
        applied[name] += strength
        if len(applied) > MAX_LORAS or abs(applied[name]) > MAX_LORA_STRENGTH:
            limits = f"{MAX_LORAS} LoRAs, each of a strength within ±{MAX_LORA_STRENGTH:g}"
            raise self._refuse(node, f"the LoRA {name}: a request has at most {limits}")
        self.request.options["loras"] = tuple(Lora(*one) for one in applied.items())
        return self._tell(node, f"the LoRA {name} at {strength:g}")

    def _weight_dtype(self, node: Node) -> None:
        dtype = self._text(node, "weight_dtype", "default")
        if dtype != "default":
            self.request.weight_dtype = dtype

    def _norm(self, node: Node) -> GuidanceNorm:
        strength = self._number(node, "strength", 0, 100, 1.0)
        if strength != 1 or self._flag(node, "pre_cfg", False):
            raise self._refuse(node, f"strength {strength:g}: only 1 after guidance is supported")
        self._tell(node, "guidance norm x0")
        return GuidanceNorm.X0

    def _texts(self, sampler: Node) -> None:
        request = self.request
        positive = self._encoder(sampler, "positive")
        rounded = "reference sides are rounded to multiples of 16, where ComfyUI rounds to 8"
        self._tell(positive, f"the prompt and its pictures; {rounded}")
        request.prompt = self._prompt(positive)
        request.pictures = self._pictures(positive)
        if not guides(self._cfg(sampler)):
            self._use(sampler, "negative")
            return  # at 1 the negative side counts for nothing
        negative = self._encoder(sampler, "negative")
        self._tell(negative, "the negative prompt, with the same pictures")
        request.options["negative_prompt"] = self._prompt(negative)
        if self._pictures(negative) != request.pictures:
            raise self._refuse(negative, "it has other pictures than the prompt")

    def _prompt(self, node: Node) -> str:
        text = self._text(node, "prompt", "")
        if len(text) > MAX_PROMPT_CHARACTERS or "\0" in text:
            limit = f"the limit is {MAX_PROMPT_CHARACTERS}, without NUL"
            raise self._refuse(node, f"prompt of {len(text)} characters: {limit}")
        return text

    def _encoder(self, sampler: Node, name: str) -> Node:
        node, known = sampler, ["TextEncodeQwenImageEditPlus"]
        for _ in range(len(self._graph.nodes)):
            found = self._source(node, name, [*known, "FluxKontextMultiReferenceLatentMethod"])
            if found.type in known:
                break
            method = self._value(found, "reference_latents_method")
            if method not in _METHODS:
                raise self._refuse(
                    found, f"{method!r} is not supported; supported: {', '.join(sorted(_METHODS))}"
                )
            self.request.zero_cond_t |= method == "index_timestep_zero"
            self._tell(found, f"references by {method}: the checkpoint's own way")
            node, name = found, "conditioning"
        clip = self._source(found, "clip", ["CLIPLoader"])
        if (kind := self._value(clip, "type")) != "qwen_image":
            raise self._refuse(clip, f"type {kind!r}: only qwen_image is supported")
        self._named(clip, "clip_name", "text_encoder")
        if "vae" not in found.links:
            raise self._refuse(found, "without a vae, pictures are no references")
        self._vae(found)
        return found

    def _pictures(self, text: Node) -> list[str]:
        names = []
        for place in (1, 2, 3):
            if f"image{place}" in text.links:
                image = self._follow(text, f"image{place}")
                if image is None:
                    continue  # an input of a subgraph to which nothing is connected
                if image.type != "LoadImage":
                    unknown = f"as image{place} of {text} it is not supported"
                    raise self._refuse(image, _WHY_NOT.get(image.type, unknown))
                names.append(self._text(image, "image"))
                self._tell(image, f"picture {len(names)}")
        if not names:
            raise self._refuse(text, "it has no picture; a try-on begins with a person")
        return names

    def _latents(self, sampler: Node) -> None:
        sized = ["EmptyLatentImage", "EmptySD3LatentImage"]
        node = self._source(sampler, "latent_image", ["VAEEncode", *sized])
        if node.type in sized:
            if (count := self._whole(node, "batch_size", 1, MAX_SIDE, 1)) != 1:
                raise self._refuse(node, f"batch_size {count}: a try-on gives one picture")
            if self._denoise(sampler) < 1:
                raise self._refuse(node, "denoise below 1 starts from the person, not from nothing")
            width = self.request.options["width"] = self._side(node, "width")
            height = self.request.options["height"] = self._side(node, "height")
            self._tell(node, f"size {width} × {height}")
            return
        self._vae(node)
        image = self._source(node, "pixels", ["LoadImage"])
        if self.request.pictures[:1] != [self._text(image, "image")]:
            raise self._refuse(node, "the size is the first picture's, and this is another")
        self._tell(node, "the size of picture 1")

    def _side(self, node: Node, name: str) -> int:
        side = self._whole(node, name, SIDE_MULTIPLE, MAX_SIDE)
        if side % SIDE_MULTIPLE:
            raise self._refuse(node, f"{name} {side} is not a multiple of {SIDE_MULTIPLE}")
        return side

    def _vae(self, node: Node) -> None:
        self._named(self._source(node, "vae", ["VAELoader"]), "vae_name", "vae")

    def _named(self, node: Node, value: str, part: str) -> None:
        name = self._text(node, value)
        if self.request.models.setdefault(part, name) != name:
            raise self._refuse(node, f"{name}, and elsewhere it is {self.request.models[part]}")
        self._tell(node, f"the checkpoint's {part}: {name}")
