"""ComfyUI's editor format: subgraphs are expanded, and values found by position or promotion.

Source of the format: ComfyUI's workflow schema, versions 0.4 and 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtryon.errors import RequestError
from vtryon.workflow.nodes import Node, Source, check_count

_INPUT, _OUTPUT = -10, -20  # a subgraph's own ends
_MUTED, _BYPASSED = 2, 4
_DEEPEST = 16
_OWN_INPUT = "-1"  # in `proxyWidgets`: an input of the subgraph itself

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
class _Link:
    origin: int
    origin_slot: int
    target: int
    target_slot: int


@dataclass(frozen=True, slots=True)
class _Promoted:
    """A value that a subgraph's node gives to an input of the subgraph."""

    value: Any


_End = Source | _Promoted | None


@dataclass(frozen=True, slots=True)
class _Scope:
    """One instance of a level.

    Attributes:
        incoming: source that the parent level connects to each input slot.
        overrides: values that the parent level writes into nodes, by node and name.
    """

    prefix: str
    nodes: Mapping[int, Mapping[str, Any]]
    links: Mapping[int, _Link]
    incoming: dict[int, _End] = field(default_factory=dict)
    overrides: dict[int, dict[str, Any]] = field(default_factory=dict)
    inner: dict[int, _Scope] = field(default_factory=dict)


class Editor:
    """Reads a graph of the editor's format."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        definitions = content.get("definitions") or {}
        self._subgraphs = {one["id"]: one for one in definitions.get("subgraphs") or []}
        self._top = content
        self._count = 0

    def nodes(self) -> Iterator[Node]:
        """Give every node, with subgraphs expanded.

        Raises:
            RequestError: there are too many, or a value can't be assigned.
        """
        yield from self._expand(self._scope("", self._top), 0)

    def _scope(self, prefix: str, level: Mapping[str, Any]) -> _Scope:
        self._count += len(level["nodes"])
        check_count(self._count)
        nodes = {int(node["id"]): node for node in level["nodes"]}
        if len(nodes) != len(level["nodes"]):
            raise RequestError("two nodes of the graph have the same id")
        return _Scope(prefix, nodes, dict(_read_link(link) for link in level.get("links") or []))

    def _is_open(self, node: Mapping[str, Any]) -> bool:
        """Whether a node stands for a subgraph that runs; one switched off is a plain node."""
        return node["type"] in self._subgraphs and node.get("mode") not in {_MUTED, _BYPASSED}

    def _expand(self, scope: _Scope, depth: int) -> Iterator[Node]:
        if depth > _DEEPEST:
            raise RequestError(f"subgraphs are nested more than {_DEEPEST} deep")
        # Every subgraph first, for links out of one.
        for number, node in scope.nodes.items():
            if self._is_open(node) and number not in scope.inner:
                self._open(scope, number, node)
        for number, node in scope.nodes.items():
            if self._is_open(node):
                yield from self._expand(scope.inner[number], depth + 1)
            else:
                yield self._plain(scope, number, node)

    def _open(self, scope: _Scope, number: int, node: Mapping[str, Any]) -> None:
        definition = self._subgraphs[node["type"]]
        inner = self._scope(f"{scope.prefix}{number}:", definition)
        scope.inner[number] = inner
        slots = [one.get("name") for one in definition.get("inputs") or []]
        for position, given in enumerate(node.get("inputs") or []):
            slot = slots.index(given["name"]) if given.get("name") in slots else position
            if given.get("link") is not None:
                inner.incoming[slot] = self._resolve(scope, scope.links[given["link"]])
        proxies = _proxies(node) or [(_OWN_INPUT, name) for name in _widgets(inner, slots)]
        overrides = scope.overrides.get(number, {})
        for target, name, value in _promoted(node, proxies, overrides, slots):
            if target == _OWN_INPUT:
                inner.incoming.setdefault(slots.index(name), _Promoted(value))
            elif int(target) in inner.nodes:
                inner.overrides.setdefault(int(target), {})[name] = value

    def _resolve(self, scope: _Scope, link: _Link) -> _End:
        """Follow a link to a node that the editor did not add itself."""
        if link.origin == _INPUT:
            return scope.incoming.get(link.origin_slot)
        if self._is_open(scope.nodes[link.origin]):
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
            str(self._subgraphs.get(node["type"], {}).get("name") or node["type"]),
            muted=node.get("mode") == _MUTED,
            bypassed=node.get("mode") == _BYPASSED,
            output_types=[str(one.get("type")) for one in node.get("outputs") or []],
        )
        written = node.get("widgets_values") or []
        if isinstance(written, dict):
            found.values.update(written)
        else:
            known = WIDGETS.get(found.type, ())
            names = [*known, *(f"value {place}" for place in range(len(known), len(written)))]
            found.values.update(zip(names, written, strict=False))
        found.values.update(scope.overrides.get(number, {}))
        for given in node.get("inputs") or []:
            found.input_types.append((given["name"], str(given.get("type"))))
            if given.get("link") is None:
                continue
            match self._resolve(scope, scope.links[given["link"]]):
                case Source() as source:
                    found.links[given["name"]] = source
                case _Promoted(value):
                    found.values[given["name"]] = value
                case None:
                    pass
        return found


def _promoted(
    node: Mapping[str, Any],
    proxies: Sequence[tuple[str, str]],
    overrides: Mapping[str, Any],
    slots: Sequence[str],
) -> Iterator[tuple[str, str, Any]]:
    """Give the values that a subgraph's node writes: inner node, name, value.

    Raises:
        RequestError: a value can't be assigned, so that it would be lost.
    """
    written = node.get("widgets_values") or []
    if written and len(written) != len(proxies):
        raise RequestError(
            f"subgraph node {node['id']} has {len(written)} values for {len(proxies)} widgets"
        )
    values = dict(zip(proxies, written, strict=False))
    for name, value in overrides.items():
        named = [proxy for proxy in proxies if proxy[1] == name]
        if not named and name not in slots:
            raise RequestError(f"subgraph node {node['id']} has no widget {name!r} to set")
        values |= dict.fromkeys(named or [(_OWN_INPUT, name)], value)
    for (target, name), value in values.items():
        if name.startswith("$$"):  # a preview on the canvas
            continue
        if target == _OWN_INPUT and name not in slots:
            raise RequestError(f"subgraph node {node['id']} has no input {name!r}")
        yield target, name, value


def _proxies(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the widgets that a subgraph's node exposes: inner node and name of each."""
    written = (node.get("properties") or {}).get("proxyWidgets") or []
    return [(str(one[0]), str(one[1])) for one in written]


def _widgets(scope: _Scope, slots: Sequence[str]) -> list[str]:
    """Give the inputs of a subgraph that its node shows as widgets: those that feed one inside."""
    fed = set()
    for link in scope.links.values():
        if link.origin == _INPUT and link.target in scope.nodes:
            inputs = scope.nodes[link.target].get("inputs") or []
            if link.target_slot < len(inputs) and inputs[link.target_slot].get("widget"):
                fed.add(link.origin_slot)
    return [name for slot, name in enumerate(slots) if slot in fed]


def _read_link(link: Any) -> tuple[int, _Link]:
    if isinstance(link, dict):
        ends = ("origin_id", "origin_slot", "target_id", "target_slot")
        return link["id"], _Link(*(link[name] for name in ends))
    number, *rest = link
    return number, _Link(*rest[:4])
