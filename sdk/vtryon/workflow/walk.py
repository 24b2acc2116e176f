"""Walking a graph from a node to its sources, with the type and range of each value checked.

Every value and connection that is read is recorded, so that the rest can be refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from vtryon.errors import RequestError
from vtryon.workflow.graph import Graph
from vtryon.workflow.nodes import Node, Source
from vtryon.workflow.request import NodeReport

ALL = frozenset({"*"})
_PRIMITIVES = {f"Primitive{kind}" for kind in ("Boolean", "Float", "Int", "String")}
_PRIMITIVES |= {"PrimitiveStringMultiline"}
_COMMENTS = {"MarkdownNote", "Note"}
_FIXED = {"fixed", None, False}
_MAX_JOINED = 64  # texts joined from joined texts, this deep
_MAX_TEXT = 100_000


class Refused(Exception):  # noqa: N818, control flow within a reading
    """A node can't be honoured; its line says why."""


class Walk:
    """Traversal of a graph, independent of the meaning of its nodes.

    Args:
        graph: the graph to read.
        without: types of nodes to leave out although the picture will differ.
        why_not: explanation for types that can't be honoured.

    Raises:
        RequestError: the graph has no node of a type in `without`.
    """

    def __init__(
        self, graph: Graph, without: Sequence[str] = (), why_not: Mapping[str, str] | None = None
    ) -> None:
        self._graph = graph
        self._without = set(without)
        self._why_not = why_not or {}
        self._lines: dict[str, NodeReport] = {}
        self._used: dict[str, set[str]] = {}
        self._made: dict[tuple[str, str], Any] = {}
        self._depth = 0
        types = {node.type for node in graph.nodes.values()}
        if missing := sorted(self._without - types):
            raise RequestError(
                f"--without {', '.join(missing)}: the graph has no such node; "
                f"it has {', '.join(sorted(types))}"
            )

    @property
    def lines(self) -> list[NodeReport]:
        """Every node of the graph, those first that the picture depends on."""
        rest = [node for node in self._graph.nodes.values() if node.id not in self._lines]
        return [
            *self._lines.values(),
            *(NodeReport(one.id, one.type, self._rest(one)) for one in rest),
        ]

    def _rest(self, node: Node) -> str:
        if node.type in _COMMENTS:
            return "a comment"
        if off := self._off(node):
            return off
        stopped = any(line.refused for line in self._lines.values())
        return "not read" if stopped else "nothing: the picture does not depend on it"

    def _off(self, node: Node) -> str:
        """Say why a node does not run; empty where it does."""
        if node.type in self._without:
            return "left out, as was asked"
        return "muted" if node.muted else "bypassed" if node.bypassed else ""

    def _of_type(self, *types: str) -> list[Node]:
        """Give the nodes of some types that run."""
        nodes = self._graph.nodes.values()
        return [node for node in nodes if node.type in types and not self._off(node)]

    def _attempt(self, part: Callable[[], None]) -> None:
        """Read on after a refusal, so that every refusal is named."""
        with suppress(Refused):
            part()

    def _tell(self, node: Node, becomes: str) -> None:
        if node.id not in self._lines:
            self._lines[node.id] = NodeReport(node.id, node.type, becomes)

    def _refuse(self, node: Node, why: str) -> Refused:
        self._lines[node.id] = NodeReport(node.id, node.type, why, refused=True)
        return Refused()

    def _use(self, node: Node, *names: str) -> None:
        self._used.setdefault(node.id, set()).update(names)

    def _refuse_unread(self, no_effect: Mapping[str, frozenset[str]]) -> None:
        """Reject values of the picture's nodes that nothing has read."""
        for line in list(self._lines.values()):
            node = self._graph.nodes[line.node]
            unread = {name for name, value in node.values.items() if value is not None}
            unread |= set(node.links)
            unread -= self._used.get(node.id, set()) | no_effect.get(node.type, frozenset())
            if unread and not line.refused and "*" not in no_effect.get(node.type, ()):
                known = "no counterpart here, and the picture may depend on it"
                self._refuse(node, f"{', '.join(sorted(unread))}: {known}")

    def _source(self, node: Node, name: str, kinds: Sequence[str]) -> Node:
        """Return the node connected to an input, of one of these types."""
        found = self._follow(node, name)
        if found is None:
            raise self._refuse(node, f"nothing is connected to its {name}")
        if found.type not in kinds:
            unknown = f"as {name} of {node} it is not supported; supported: {', '.join(kinds)}"
            raise self._refuse(found, self._why_not.get(found.type, unknown))
        return found

    def _follow(self, node: Node, name: str) -> Node | None:
        """Follow an input through switches, reroutes, and nodes that do not run."""
        self._use(node, name)
        source = node.links.get(name)
        for _ in range(len(self._graph.nodes) + 1):
            if source is None:
                return None
            found = self._graph.nodes.get(source.node)
            if found is None:
                raise self._refuse(
                    node, f"its {name} comes from node {source.node}, which is not there"
                )
            onward = self._onward(found, source)
            if onward is found:
                if source.slot:
                    raise self._refuse(found, f"output {source.slot} as {name} of {node}")
                return found
            source = onward  # type: ignore[assignment]
        raise self._refuse(node, f"its {name} goes round in a circle")

    def _onward(self, found: Node, source: Source) -> Node | Source | None:
        """Give the node itself, or where the connection leads on through it."""
        off = self._off(found)
        if off == "muted":
            raise self._refuse(found, "it is muted, and the picture depends on it")
        if off:
            self._tell(found, off)
            self._use(found, *found.values, *found.links)
            return self._through(found, source)
        if found.type == "ComfySwitchNode":
            on = self._flag(found, "switch")
            self._use(found, "on_true", "on_false")
            self._tell(found, f"the branch {'on_true' if on else 'on_false'}")
            return found.links.get("on_true" if on else "on_false")
        if found.type == "Reroute":
            self._use(found, *found.values, *found.links)
            self._tell(found, "a connection")
            return next(iter(found.links.values()), None)
        return found

    def _through(self, node: Node, source: Source) -> Source | None:
        """Return the input that replaces a bypassed output: the first of its type, as in ComfyUI.

        The API format has no types: there it is the first connected input.
        """
        if not node.output_types:
            return next(iter(node.links.values()), None)
        kind = node.output_types[source.slot] if source.slot < len(node.output_types) else None
        for name, own in node.input_types:
            if own == kind and name in node.links:
                return node.links[name]
        return None

    def _value(self, node: Node, name: str, default: Any = None) -> Any:
        """Give a value: written in the node, or made by the nodes connected to it."""
        self._use(node, name)
        if name not in node.links:
            return node.values.get(name, default)
        key = (node.id, name)
        if key not in self._made:
            if self._depth > _MAX_JOINED:
                raise self._refuse(node, f"its {name} is made by more than {_MAX_JOINED} nodes")
            self._depth += 1
            try:
                self._made[key] = self._make(node, name, default)
            finally:
                self._depth -= 1
        return self._made[key]

    def _make(self, node: Node, name: str, default: Any) -> Any:
        made = self._follow(node, name)
        if made is None:
            return node.values.get(name, default)
        if made.type in _PRIMITIVES:
            self._use(made, "control_after_generate")
            value = self._value(made, "value")
            self._tell(made, f"{name} {_short(value)}")
            return value
        if made.type == "StringConcatenate":
            first, second = (self._text(made, one, "") for one in ("string_a", "string_b"))
            text = self._text(made, "delimiter", "").join((first, second))
            if len(text) > _MAX_TEXT:
                raise self._refuse(made, f"its text has more than {_MAX_TEXT} characters")
            self._tell(made, f"{name} {_short(text)}")
            return text
        raise self._refuse(made, f"the {name} of {node} made by this node is not supported")

    def _is_drawn(self, node: Node, name: str) -> bool:
        """Whether ComfyUI changes a value after each run, here or in the node that makes it."""
        made = self._follow(node, name) if name in node.links else None
        if made is not None and made.type in _PRIMITIVES:
            return made.values.get("control_after_generate") not in _FIXED
        return self._value(node, "control_after_generate") not in _FIXED

    def _text(self, node: Node, name: str, default: str | None = None) -> str:
        value = self._value(node, name, default)
        if not isinstance(value, str):
            raise self._refuse(node, f"{name} {_short(value)} is not text")
        return value

    def _flag(self, node: Node, name: str, default: bool | None = None) -> bool:
        value = self._value(node, name, default)
        if not isinstance(value, bool):
            raise self._refuse(node, f"{name} {_short(value)} is not true or false")
        return value

    def _whole(self, node: Node, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._value(node, name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._refuse(node, f"{name} {_short(value)} is not a whole number")
        if not low <= value <= high:
            raise self._refuse(node, f"{name} {_short(value)} is not within {low} to {high}")
        return value

    def _number(
        self, node: Node, name: str, low: float, high: float, default: float | None = None
    ) -> float:
        value = self._value(node, name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or _is_nan(value):
            raise self._refuse(node, f"{name} {_short(value)} is not a number")
        if not low <= value <= high:
            raise self._refuse(node, f"{name} {_short(value)} is not within {low:g} to {high:g}")
        return float(value)


def _is_nan(value: int | float) -> bool:  # noqa: PYI041 - 10^400 is an int and no float
    return isinstance(value, float) and math.isnan(value)


def _short(value: Any) -> str:
    text = str(value)
    short = text if len(text) <= 40 else f"{text[:39]}…"
    return repr(short) if isinstance(value, str) else short
