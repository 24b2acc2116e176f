"""The graph of a try-on: the stages with their RPC, inputs, outputs and start messages.

The pipeline and Kafka's topics read this table; tests compare Triton's contract with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from vtryon.events import UnusedOption
from vtryon.sampling_options import sampling_fields
from vtryon.types import (
    DecodeStart,
    EncodeLatentsStart,
    EncodeTextStart,
    Numerics,
    Payload,
    PayloadKind,
    SampleStart,
    Stage,
    Start,
    TryOnOptions,
)
from vtryon.wire.stream import DECODE, ENCODE_LATENTS, ENCODE_TEXT, SAMPLE, StreamMethod

_CHOICES = {one.name for one in fields(Numerics)} - {"profile"}
_RESIZE = {"resize"}
# Of a profile's choices; the profile itself goes to all of these.
_USED = {
    Stage.LATENT_ENCODER: _RESIZE,
    Stage.TEXT_ENCODER: _RESIZE,
    Stage.SAMPLING: _CHOICES - _RESIZE,
}


def numerics_for(stage: Stage, numerics: Numerics | None) -> Numerics | None:
    """Give the numerics that a stage uses."""
    if numerics is None:
        return None
    return replace(numerics, **dict.fromkeys(_CHOICES - _USED[stage], None))


def unused_numerics(stage: Stage, numerics: Numerics | None) -> tuple[UnusedOption, ...]:
    """Name the numerics that a caller gave to a stage that does not use them."""
    names = sorted(_CHOICES - _USED[stage])
    return tuple(
        UnusedOption(f"numerics.{name}", f"changes nothing in {stage}")
        for name in names
        if getattr(numerics, name, None) is not None
    )


def _encode_latents(options: TryOnOptions, _: Sequence[Payload]) -> EncodeLatentsStart:
    return EncodeLatentsStart(numerics=numerics_for(Stage.LATENT_ENCODER, options.numerics))


def _encode_text(options: TryOnOptions, _: Sequence[Payload]) -> EncodeTextStart:
    return EncodeTextStart(
        numerics=numerics_for(Stage.TEXT_ENCODER, options.numerics),
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
    )


def sample_start(options: TryOnOptions, given: Sequence[Payload]) -> SampleStart:
    """Build the sampler's start message.

    The default size of the target is the encoded size of the person: that of the first reference.
    """
    width, height = options.width or 0, options.height or 0
    specs = [one.tensor for one in given if one.kind is PayloadKind.REFERENCE_LATENTS]
    shape = specs[0].shape if specs and specs[0] else ()
    if not (width or height) and len(shape) == 3:
        height, width = 8 * shape[1], 8 * shape[2]
    return SampleStart(
        numerics=numerics_for(Stage.SAMPLING, options.numerics),
        width=width,
        height=height,
        **sampling_fields(options),
        previews=options.previews,
        priority=options.priority,
        loras=options.loras,
    )


def _decode(options: TryOnOptions, _: Sequence[Payload]) -> DecodeStart:
    return DecodeStart(format=options.format, quality=options.quality)


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage of the graph.

    Attributes:
        method: its RPC.
        takes: kinds of payloads that are its inputs.
        gives: kinds of payloads that are inputs of later stages.
        start: makes its start message from the options of a try-on and the payloads.
    """

    method: StreamMethod
    takes: frozenset[PayloadKind]
    gives: frozenset[PayloadKind]
    start: Callable[[TryOnOptions, Sequence[Payload]], Start]


PICTURES = frozenset({PayloadKind.IMAGE, PayloadKind.PERSON_IMAGE, PayloadKind.GARMENT_IMAGE})
_EMBEDDINGS = frozenset({PayloadKind.EMBEDDINGS, PayloadKind.NEGATIVE_EMBEDDINGS})
_REFERENCES = frozenset({PayloadKind.REFERENCE_LATENTS})
_LATENTS = frozenset({PayloadKind.LATENTS})
_NOISE = frozenset({PayloadKind.NOISE})

GRAPH: Mapping[str, StageSpec] = {
    Stage.TEXT_ENCODER: StageSpec(ENCODE_TEXT, PICTURES, _EMBEDDINGS, _encode_text),
    Stage.LATENT_ENCODER: StageSpec(ENCODE_LATENTS, PICTURES, _REFERENCES, _encode_latents),
    Stage.SAMPLING: StageSpec(SAMPLE, _EMBEDDINGS | _REFERENCES | _NOISE, _LATENTS, sample_start),
    Stage.DECODING: StageSpec(DECODE, _LATENTS, frozenset(), _decode),
}
