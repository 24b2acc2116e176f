"""ComfyUI's two formats as one graph: the API's, and the editor's with its subgraphs.

Source of the formats: ComfyUI's workflow schema, versions 0.4 and 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtryon.errors import RequestError

_INPUT, _OUTPUT = -10, -20  # a subgraph's own ends
_MUTED, _BYPASSED = 2, 4
_DEEPEST = 16

# The editor writes values by position. What a node's positions are called.
WIDGETS: dict[str, Sequence[str]] = {
    "CFGNorm": ("strength", "pre_cfg"),
    "CLIPLoader": ("clip_name", "type", "device"),
    "ComfySwitchNode": ("switch",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "FluxKontextMultiReferenceLatentMethod": ("reference_latents_method",),
    "KSampler": (
        "seed",
        "control_after_generate",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "denoise",
    ),
    "LoadImage": ("image", "upload"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "ModelSamplingAuraFlow": ("shift",),
    "PrimitiveBoolean": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveInt": ("value", "control_after_generate"),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "SaveImage": ("filename_prefix",),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
    "TextEncodeQwenImageEdit": ("prompt",),
    "TextEncodeQwenImageEditPlus": ("prompt",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "VAELoader": ("vae_name",),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where an input comes from: a node's output."""

    node: str
    slot: int


@dataclass(slots=True)
class Node:
    """A node: `id` is its path through subgraphs, "170:151".

    Attributes:
        values: what is written in it; links: what comes from elsewhere, and goes first.
        types: of its inputs, in order, and of its outputs; for nodes that are bypassed.
    """

    id: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, Source] = field(default_factory=dict)
    muted: bool = False
    bypassed: bool = False
    input_types: list[tuple[str, str]] = field(default_factory=list)
    output_types: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.type} (node {self.id})"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes by id, subgraphs taken apart."""

    nodes: Mapping[str, Node]

    @classmethod
    def read(cls, content: Any) -> Graph:
        """Read a graph of either format.

        Raises:
            RequestError: it is neither.
        """
        if isinstance(content, dict) and isinstance(content.get("prompt"), dict):
            content = content["prompt"]
        try:
            if isinstance(content, dict) and isinstance(content.get("nodes"), list):
                return cls({node.id: node for node in _Editor(content).nodes()})
            if isinstance(content, dict) and content:
                return cls({name: _from_api(str(name), node) for name, node in content.items()})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RequestError(f"no graph of ComfyUI's: {error!r} does not hold") from None
        raise RequestError("no graph of ComfyUI's: neither `nodes` nor nodes by id")

    def of_type(self, *types: str) -> list[Node]:
        """Give the nodes of some types that are switched on."""
        return [node for node in self.nodes.values() if node.type in types and not node.muted]


def _from_api(name: str, node: Mapping[str, Any]) -> Node:
    found = Node(name, str(node["class_type"]))
    for key, value in node["inputs"].items():
        linked = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
        if linked and isinstance(value[0], (str, int)):
            found.links[key] = Source(str(value[0]), value[1])
        else:
            found.values[key] = value
    return found


@dataclass(frozen=True, slots=True)
class _Link:
    origin: int
    origin_slot: int
    target: int
    target_slot: int


@dataclass(frozen=True, slots=True)
class _Scope:
    """One level: its nodes and links, and what comes in from the level above."""

    prefix: str
    nodes: Mapping[int, Mapping[str, Any]]
    links: Mapping[int, _Link]
    incoming: Mapping[int, Source | None]
    inner: dict[int, _Scope] = field(default_factory=dict)


class _Editor:
    def __init__(self, content: Mapping[str, Any]) -> None:
        definitions = content.get("definitions") or {}
        self._subgraphs = {one["id"]: one for one in definitions.get("subgraphs") or []}
        self._top = content

    def nodes(self) -> Iterator[Node]:
        yield from self._expand(self._scope("", self._top, {}), 0)

    def _scope(
        self, prefix: str, level: Mapping[str, Any], incoming: Mapping[int, Source | None]
    ) -> _Scope:
        return _Scope(
            prefix,
            {int(node["id"]): node for node in level["nodes"]},
            dict(_read_link(link) for link in level.get("links") or []),
            incoming,
        )

    def _expand(self, scope: _Scope, depth: int) -> Iterator[Node]:
        if depth > _DEEPEST:
            raise RequestError("subgraphs within subgraphs without end")
        # Every subgraph first, for links out of one.
        for number, node in scope.nodes.items():
            if node["type"] in self._subgraphs:
                self._open(scope, number, node)
        for number, node in scope.nodes.items():
            if node["type"] in self._subgraphs:
                yield from self._expand(scope.inner[number], depth + 1)
            else:
                yield self._plain(scope, number, node)

    def _open(self, scope: _Scope, number: int, node: Mapping[str, Any]) -> None:
        incoming: dict[int, Source | None] = {}
        inner = self._scope(f"{scope.prefix}{number}:", self._subgraphs[node["type"]], incoming)
        scope.inner[number] = inner
        for slot, given in enumerate(node.get("inputs") or []):
            if given.get("link") is not None:
                incoming[slot] = self._resolve(scope, scope.links[given["link"]])
        overrides = (node.get("properties") or {}).get("proxyWidgets") or []
        for (target, name), value in zip(overrides, node.get("widgets_values") or [], strict=False):
            proxied = inner.nodes.get(int(target))
            if proxied is not None:
                proxied.setdefault("_overrides", {})[name] = value  # type: ignore[attr-defined]

    def _resolve(self, scope: _Scope, link: _Link) -> Source | None:
        """Follow a link to a node that is none of the editor's own making."""
        if link.origin == _INPUT:
            return scope.incoming.get(link.origin_slot)
        if link.origin in scope.inner or scope.nodes[link.origin]["type"] in self._subgraphs:
            if link.origin not in scope.inner:
                self._open(scope, link.origin, scope.nodes[link.origin])
            inner = scope.inner[link.origin]
            for one in inner.links.values():
                if (one.target, one.target_slot) == (_OUTPUT, link.origin_slot):
                    return self._resolve(inner, one)
            return None
        return Source(f"{scope.prefix}{link.origin}", link.origin_slot)

    def _plain(self, scope: _Scope, number: int, node: Mapping[str, Any]) -> Node:
        found = Node(
            f"{scope.prefix}{number}",
            str(node["type"]),
            muted=node.get("mode") == _MUTED,
            bypassed=node.get("mode") == _BYPASSED,
            output_types=[str(one.get("type")) for one in node.get("outputs") or []],
        )
        written = node.get("widgets_values") or []
        if isinstance(written, dict):
            found.values.update(written)
        else:
            names = WIDGETS.get(found.type) or [f"value {place}" for place in range(len(written))]
            found.values.update(zip(names, written, strict=False))
        found.values.update(node.get("_overrides") or {})
        for given in node.get("inputs") or []:
            found.input_types.append((given["name"], str(given.get("type"))))
            if given.get("link") is not None:
                source = self._resolve(scope, scope.links[given["link"]])
                if source is not None:
                    found.links[given["name"]] = source
        return found


def _read_link(link: Any) -> tuple[int, _Link]:
    if isinstance(link, dict):
        ends = ("origin_id", "origin_slot", "target_id", "target_slot")
        return link["id"], _Link(*(link[name] for name in ends))
    number, *rest = link
    return number, _Link(*rest[:4])
