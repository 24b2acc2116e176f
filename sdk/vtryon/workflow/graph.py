"""ComfyUI's two formats as one graph: the API's, and the editor's with its subgraphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtryon.errors import RequestError
from vtryon.workflow.editor import Editor
from vtryon.workflow.nodes import Node, Source, check_count


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes by id, with subgraphs expanded."""

    nodes: Mapping[str, Node]

    @classmethod
    def read(cls, content: Any) -> Graph:
        """Read a graph of either format.

        Raises:
            RequestError: it is neither, or has more than `MAX_NODES` nodes.
        """
        if isinstance(content, dict) and isinstance(content.get("prompt"), dict):
            content = content["prompt"]
        try:
            if isinstance(content, dict) and isinstance(content.get("nodes"), list):
                return cls({node.id: node for node in Editor(content).nodes()})
            if isinstance(content, dict) and content:
                check_count(len(content))
                return cls({name: _from_api(str(name), node) for name, node in content.items()})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RequestError(f"not a ComfyUI graph: {error!r} is missing or invalid") from None
        except RecursionError:
            raise RequestError("the graph's subgraphs are connected in a circle") from None
        raise RequestError("not a ComfyUI graph: neither `nodes` nor nodes by id")


def _from_api(name: str, node: Mapping[str, Any]) -> Node:
    found = Node(name, str(node["class_type"]))
    for key, value in node["inputs"].items():
        linked = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
        if linked and isinstance(value[0], (str, int)):
            found.links[key] = Source(str(value[0]), value[1])
        else:
            found.values[key] = value
    return found
