"""The nodes of a graph, whichever format they were read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vtryon.errors import RequestError

MAX_NODES = 5000  # with subgraphs expanded


@dataclass(frozen=True, slots=True)
class Source:
    """Where an input comes from: a node's output."""

    node: str
    slot: int


@dataclass(slots=True)
class Node:
    """A node: `id` is its path through subgraphs, "170:151".

    Attributes:
        values: the node's own values; links: connected inputs, which take precedence.
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


def check_count(nodes: int) -> None:
    """Check the number of nodes read so far.

    Raises:
        RequestError: there are more than `MAX_NODES`.
    """
    if nodes > MAX_NODES:
        raise RequestError(
            f"the graph has at least {nodes} nodes with its subgraphs expanded; "
            f"the limit is {MAX_NODES}"
        )
