"""Result of an import: a request, and a line about each node."""

from __future__ import annotations

from dataclasses import dataclass, field

from vtryon.options import TryOnArguments


@dataclass(slots=True)
class WorkflowRequest:
    """A graph as arguments of `vtryon.Client.try_on`, and its requirements on the checkpoint.

    Attributes:
        options: all but the prompt; `sigmas` are there for a `denoise` below 1 alone, `loras` have
            the names of their files, without suffix and folder.
        pictures: file names of the person and the garments in the graph.
        models: names of weights by part: transformer, text_encoder, vae.
        weight_dtype: the precision to which the transformer's weights are cast, if any.
        zero_cond_t: whether references are modulated as at time zero.
    """

    prompt: str = ""
    options: TryOnArguments = field(default_factory=TryOnArguments)
    pictures: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    weight_dtype: str | None = None
    zero_cond_t: bool = False


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Meaning of a node, or why it can't be honoured."""

    node: str
    type: str
    becomes: str
    refused: bool = False
