"""What a graph for Qwen-Image-Edit asks for, walked from the picture back to its sources.

A node or a value that can't be honoured is named and refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vtryon.errors import RequestError
from vtryon.types import GuidanceNorm, Numerics, Profile
from vtryon.workflow.graph import Graph, Node, Source

_SAVES = ("SaveImage", "PreviewImage", "SaveImageAdvanced", "SaveImageWebsocket")
_PRIMITIVES = {f"Primitive{kind}" for kind in ("Boolean", "Float", "Int", "String")}
_PRIMITIVES |= {"PrimitiveStringMultiline"}
_COMMENTS = {"MarkdownNote", "Note"}
_FIXED = {"fixed", None, False}
_WHY_NOT = {
    "FluxKontextImageScale": "it crops the picture to one of 17 sizes, and here pictures keep "
    "their shape; to do without: --without FluxKontextImageScale",
    "ImageScaleToTotalPixels": "pictures are scaled to the checkpoint's own size here; to do "
    "without: --without ImageScaleToTotalPixels",
    "TextEncodeQwenImageEdit": "the template of the first Qwen-Image-Edit; there is that of "
    "TextEncodeQwenImageEditPlus",
}
_METHODS = {"index", "index_timestep_zero"}


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that the checkpoint is to have merged."""

    name: str
    strength: float


@dataclass(slots=True)
class Request:
    """A graph as arguments of `vtryon.Client.try_on`, and what it wants of the checkpoint.

    Attributes:
        pictures: file names of the person and the garments, as the graph has them.
        zero_cond_t: whether references are to be modulated as at time zero.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    steps: int = 0
    true_cfg_scale: float = 1.0
    seed: int | None = None
    strength: float | None = None
    width: int | None = None
    height: int | None = None
    numerics: Numerics = field(default_factory=lambda: Numerics(profile=Profile.COMFY))
    pictures: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    loras: list[Lora] = field(default_factory=list)
    zero_cond_t: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """What a node becomes, or why it can't be honoured."""

    node: str
    type: str
    becomes: str
    refused: bool = False


class _Refused(Exception):  # noqa: N818, no failure of ours
    """What was asked of a node leads nowhere; it is written down already."""


class Reading:
    """One reading of a graph.

    Args:
        graph: what to read.
        without: types of nodes to leave out all the same, whatever becomes of the picture.
    """

    def __init__(self, graph: Graph, without: Sequence[str] = ()) -> None:
        self._graph = graph
        self._without = set(without)
        self._lines: dict[str, Line] = {}
        self.request = Request()

    @property
    def lines(self) -> list[Line]:
        """Every node of the graph, those first that the picture depends on."""
        rest = [node for node in self._graph.nodes.values() if node.id not in self._lines]
        stopped = any(line.refused for line in self._lines.values())
        unread = "not read" if stopped else "nothing: the picture does not depend on it"
        others = [
            Line(one.id, one.type, "a comment" if one.type in _COMMENTS else unread) for one in rest
        ]
        return [*self._lines.values(), *others]

    def read(self) -> Request:
        """Read the whole graph.

        Raises:
            RequestError: names every node and value that can't be honoured.
        """
        samplers = self._graph.of_type("KSampler")
        saves = self._graph.of_type(*_SAVES)
        if not saves:
            raise RequestError(f"the graph saves no picture: there is none of {', '.join(_SAVES)}")
        self._attempt(lambda: self._output(saves[0]))
        if len(saves) > 1:
            self._refuse(saves[1], "one picture is drawn, and this would be another")
        if len(samplers) > 1:
            for extra in samplers:
                if extra.id not in self._lines:
                    self._refuse(extra, "there is one sampler in a try-on")
        if refused := [line for line in self._lines.values() if line.refused]:
            told = "; ".join(f"{one.type} (node {one.node}): {one.becomes}" for one in refused)
            raise RequestError(f"can't be honoured: {told}")
        return self.request

    def _attempt(self, part: Callable[[], None]) -> None:
        """Read on behind what is refused, so that all of it is named."""
        with suppress(_Refused):
            part()

    def _tell(self, node: Node, becomes: str) -> None:
        if node.id not in self._lines:
            self._lines[node.id] = Line(node.id, node.type, becomes)

    def _refuse(self, node: Node, why: str) -> _Refused:
        self._lines[node.id] = Line(node.id, node.type, why, refused=True)
        return _Refused()

    def _source(self, node: Node, name: str, kinds: Sequence[str]) -> Node:
        """Give the node behind an input, of one of these types."""
        found = self._follow(node, name)
        if found is None:
            raise self._refuse(node, f"nothing is connected to its {name}")
        if found.type not in kinds:
            unknown = f"as {name} of {node}, nobody here knows it; known: {', '.join(kinds)}"
            raise self._refuse(found, _WHY_NOT.get(found.type, unknown))
        return found

    def _follow(self, node: Node, name: str) -> Node | None:
        """Follow an input through switches, reroutes, and nodes that are bypassed or left out."""
        source = node.links.get(name)
        for _ in range(len(self._graph.nodes) + 1):
            if source is None:
                return None
            found = self._graph.nodes.get(source.node)
            if found is None:
                raise self._refuse(
                    node, f"its {name} comes from node {source.node}, which is not there"
                )
            if found.muted:
                raise self._refuse(found, "it is muted, and the picture depends on it")
            onward = self._onward(found, source)
            if onward is found:
                return found
            source = onward  # type: ignore[assignment]
        raise self._refuse(node, f"its {name} goes round in a circle")

    def _onward(self, found: Node, source: Source) -> Node | Source | None:
        """Give the node itself, or where the way goes on through it."""
        if found.type == "ComfySwitchNode":
            on = bool(self._value(found, "switch"))
            self._tell(found, f"the branch {'on_true' if on else 'on_false'}")
            return found.links.get("on_true" if on else "on_false")
        if found.type == "Reroute":
            self._tell(found, "a way on")
            return next(iter(found.links.values()), None)
        if found.bypassed or found.type in self._without:
            self._tell(found, "bypassed" if found.bypassed else "left out, as was asked")
            return self._through(found, source)
        return found

    def _through(self, node: Node, source: Source) -> Source | None:
        """Give the input that takes the place of an output: the first of its type."""
        kind = node.output_types[source.slot] if source.slot < len(node.output_types) else None
        for name, own in node.input_types:
            if own == kind and name in node.links:
                return node.links[name]
        return next(iter(node.links.values()), None)

    def _value(self, node: Node, name: str, default: Any = None) -> Any:
        """Give a value: written in the node, or made by the nodes connected to it."""
        if name not in node.links:
            return node.values.get(name, default)
        made = self._follow(node, name)
        if made is None:
            return node.values.get(name, default)
        if made.type in _PRIMITIVES:
            value = made.values.get("value")
            self._tell(made, f"{name} {_short(value)}")
            return value
        if made.type == "StringConcatenate":
            ends = [str(self._value(made, one, "")) for one in ("string_a", "string_b")]
            text = str(self._value(made, "delimiter", "")).join(ends)
            self._tell(made, f"{name} {_short(text)}")
            return text
        raise self._refuse(made, f"it makes the {name} of {node}, in a way that nobody here knows")

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
        request = self.request
        name, scheduler = self._value(node, "sampler_name"), self._value(node, "scheduler")
        if name != "euler":
            raise self._refuse(node, f"sampler_name {name!r}: there is euler")
        if scheduler != "simple":
            raise self._refuse(node, f"scheduler {scheduler!r}: there is simple")
        request.steps = int(self._value(node, "steps"))
        request.true_cfg_scale = float(self._value(node, "cfg"))
        denoise = float(self._value(node, "denoise", 1.0))
        if not 0 < denoise <= 1:
            raise self._refuse(node, f"denoise {denoise:g}")
        if denoise < 1:
            # ComfyUI makes a longer schedule and runs its last part.
            request.steps = int(request.steps / denoise)
            request.strength = denoise
        control = self._value(node, "control_after_generate")
        said = "a seed of its own each time"
        if control in _FIXED:
            request.seed = int(self._value(node, "seed", 0))
            said = f"seed {request.seed}"
        words = f"steps {request.steps}, cfg {request.true_cfg_scale:g}, euler, simple, {said}"
        if request.strength is not None:
            words += f", strength {denoise:g}"
        self._lines[node.id] = Line(node.id, node.type, words)

    def _model(self, sampler: Node) -> None:
        """Walk the patches of the model, the last one first."""
        request, node = self.request, sampler
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
                if shift is None:  # the last patch counts
                    shift = float(self._value(node, "shift"))
                self._tell(node, f"shift {shift:g}")
            else:
                lora = Lora(
                    str(self._value(node, "lora_name")),
                    float(self._value(node, "strength_model", 1.0)),
                )
                if lora.strength:
                    request.loras.insert(0, lora)
                self._tell(node, f"the checkpoint has {lora.name} merged at {lora.strength:g}")
        self._named(node, "unet_name", "transformer")
        if shift is None:
            raise self._refuse(node, "no ModelSamplingAuraFlow says which shift it is sampled with")
        request.numerics = Numerics(profile=Profile.COMFY, shift=shift, guidance_norm=norm)

    def _norm(self, node: Node) -> GuidanceNorm:
        strength = float(self._value(node, "strength", 1.0))
        if strength != 1 or self._value(node, "pre_cfg", False):
            raise self._refuse(node, f"strength {strength:g}: there is 1, behind the guidance")
        self._tell(node, "guidance norm x0")
        return GuidanceNorm.X0

    def _texts(self, sampler: Node) -> None:
        request = self.request
        positive = self._text(sampler, "positive")
        rounded = "reference sides are rounded to multiples of 16, where ComfyUI rounds to 8"
        self._tell(positive, f"the prompt and its pictures; {rounded}")
        request.prompt = str(self._value(positive, "prompt", ""))
        request.pictures = self._pictures(positive)
        guided = float(self._value(sampler, "cfg")) > 1
        if not guided:
            return  # at 1 the negative side counts for nothing
        negative = self._text(sampler, "negative")
        self._tell(negative, "the negative prompt, with the same pictures")
        request.negative_prompt = str(self._value(negative, "prompt", ""))
        if self._pictures(negative) != request.pictures:
            raise self._refuse(negative, "it has other pictures than the prompt")

    def _text(self, sampler: Node, name: str) -> Node:
        node, known = sampler, ["TextEncodeQwenImageEditPlus"]
        for _ in range(len(self._graph.nodes)):
            found = self._source(node, name, [*known, "FluxKontextMultiReferenceLatentMethod"])
            if found.type in known:
                break
            method = self._value(found, "reference_latents_method")
            if method not in _METHODS:
                raise self._refuse(found, f"{method!r}: there are {', '.join(sorted(_METHODS))}")
            self.request.zero_cond_t |= method == "index_timestep_zero"
            self._tell(found, f"references by {method}: the checkpoint's own way")
            node, name = found, "conditioning"
        clip = self._source(found, "clip", ["CLIPLoader"])
        if (kind := self._value(clip, "type")) != "qwen_image":
            raise self._refuse(clip, f"type {kind!r}: there is qwen_image")
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
                    unknown = "it makes a picture in a way that nobody here knows"
                    raise self._refuse(image, _WHY_NOT.get(image.type, unknown))
                names.append(str(self._value(image, "image")))
                self._tell(image, f"picture {len(names)}")
        if not names:
            raise self._refuse(text, "it has no picture; a try-on begins with a person")
        return names

    def _latents(self, sampler: Node) -> None:
        sized = ["EmptyLatentImage", "EmptySD3LatentImage"]
        node = self._source(sampler, "latent_image", ["VAEEncode", *sized])
        if node.type in sized:
            if (count := self._value(node, "batch_size", 1)) != 1:
                raise self._refuse(node, f"batch_size {count}: one picture is drawn")
            if self.request.strength is not None:
                raise self._refuse(node, "denoise below 1 begins with the person, not with nothing")
            self.request.width = int(self._value(node, "width"))
            self.request.height = int(self._value(node, "height"))
            self._tell(node, f"size {self.request.width} × {self.request.height}")
            return
        self._vae(node)
        image = self._source(node, "pixels", ["LoadImage"])
        if self.request.pictures[:1] != [str(self._value(image, "image"))]:
            raise self._refuse(node, "the size is the first picture's, and this is another")
        self._tell(node, "the size of picture 1")

    def _vae(self, node: Node) -> None:
        self._named(self._source(node, "vae", ["VAELoader"]), "vae_name", "vae")

    def _named(self, node: Node, value: str, part: str) -> None:
        name = str(self._value(node, value))
        if self.request.models.setdefault(part, name) != name:
            raise self._refuse(node, f"{name}, and elsewhere it is {self.request.models[part]}")
        self._tell(node, f"the checkpoint's {part}: {name}")


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:39]}…") if isinstance(value, str) else text
