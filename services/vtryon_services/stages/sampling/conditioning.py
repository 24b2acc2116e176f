"""The sampler's payloads: checks of their declaration, and conversion."""

from __future__ import annotations

import asyncio
from collections import Counter

from vtryon.errors import RequestError
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor
from vtryon.types import DataType, Payload, PayloadKind, SampleStart
from vtryon_services.backends.protocols import SamplingBackend
from vtryon_services.engine.finite import check_finite
from vtryon_services.engine.plan import MAX_TOKENS
from vtryon_services.rpc.call import Incoming
from vtryon_services.validation.declarations import payload_invalid

_EMBEDDINGS = {PayloadKind.EMBEDDINGS, PayloadKind.NEGATIVE_EMBEDDINGS}
_LATENTS = {PayloadKind.REFERENCE_LATENTS, PayloadKind.NOISE, PayloadKind.RESUME_LATENTS}
_FLOATS = {DataType.FP32, DataType.FP16, DataType.BF16}


def check_declared(start: SampleStart, backend: SamplingBackend, max_references: int) -> None:
    """Check kinds, shapes and sizes against the checkpoint, before any byte is kept.

    Raises:
        RequestError: something is missing, doubled, too large, or of another shape.
    """
    _check_area(start, backend.max_target_area)
    references = _check_counts(start, max_references)
    backend.check_pictures(references)
    target = (backend.channels, start.height // 8, start.width // 8)
    for payload in start.payloads:
        shape = payload.tensor.shape if payload.tensor else ()
        if payload.kind in _EMBEDDINGS:
            _check_embeddings(payload, shape, backend.width)
        elif payload.kind is PayloadKind.REFERENCE_LATENTS:
            _check_reference(shape, backend)
        elif payload.kind in _LATENTS and shape != target:
            raise payload_invalid(f"{payload.kind} has the shape {shape}; the target's is {target}")
        if payload.kind in _LATENTS and payload.tensor and payload.tensor.data_type != "FP32":
            raise payload_invalid(f"{payload.kind} is {payload.tensor.data_type}; latents are FP32")


def _check_area(start: SampleStart, max_target_area: int) -> None:
    if start.width * start.height > max_target_area:
        raise RequestError(
            f"{start.width}×{start.height} pixels are over the checkpoint's {max_target_area}"
        )


def _check_counts(start: SampleStart, max_references: int) -> int:
    """Check the number of payloads of each kind; give that of the references."""
    counts = Counter(payload.kind for payload in start.payloads)
    if unknown := set(counts) - _EMBEDDINGS - _LATENTS:
        raise payload_invalid(
            f"the sampler does not take payloads of kind {', '.join(map(str, unknown))}"
        )
    if counts[PayloadKind.EMBEDDINGS] != 1:
        raise payload_invalid(
            f"EMBEDDINGS come {counts[PayloadKind.EMBEDDINGS]} times; it takes one"
        )
    if not 1 <= counts[PayloadKind.REFERENCE_LATENTS] <= max_references:
        raise payload_invalid(
            f"REFERENCE_LATENTS come {counts[PayloadKind.REFERENCE_LATENTS]} times; "
            f"it takes 1 to {max_references}"
        )
    for kind in (PayloadKind.NEGATIVE_EMBEDDINGS, PayloadKind.NOISE, PayloadKind.RESUME_LATENTS):
        if counts[kind] > 1:
            raise payload_invalid(f"{kind} comes {counts[kind]} times; it takes one at most")
    if counts[PayloadKind.NOISE] and start.seed is not None:
        raise RequestError("a seed and a NOISE payload exclude each other")
    if bool(counts[PayloadKind.RESUME_LATENTS]) != (start.resume is not None):
        raise RequestError("resume and a RESUME_LATENTS payload go together")
    return counts[PayloadKind.REFERENCE_LATENTS]


def _check_embeddings(payload: Payload, shape: tuple[int, ...], width: int) -> None:
    if len(shape) != 2 or shape[1] != width or shape[0] > MAX_TOKENS:
        raise payload_invalid(
            f"{payload.kind} has the shape {shape}; it takes (1 to {MAX_TOKENS} tokens, {width})"
        )
    if payload.tensor and payload.tensor.data_type not in _FLOATS:
        raise payload_invalid(f"{payload.kind} is {payload.tensor.data_type}; it takes floats")


def _check_reference(shape: tuple[int, ...], backend: SamplingBackend) -> None:
    channels = backend.channels
    if len(shape) != 3 or shape[0] != channels or shape[1] % 2 or shape[2] % 2:
        raise payload_invalid(
            f"reference_latents has the shape {shape}; it takes ({channels}, even, even)"
        )
    if shape[1] * shape[2] * 64 > backend.max_target_area:
        raise payload_invalid(f"reference_latents of {shape} are over the checkpoint's size")


async def receive(incoming: Incoming) -> Conditioning:
    """Wait for the payloads, and sort them.

    Raises:
        RequestError: a tensor holds NaN or an infinity.
    """
    buffers = await incoming.receive()
    found: dict[PayloadKind, list[Tensor]] = {kind: [] for kind in PayloadKind}
    for payload, buffer in zip(incoming.payloads, buffers, strict=True):
        assert payload.tensor is not None
        assert payload.kind is not None
        tensor = Tensor(payload.tensor, buffer)
        await asyncio.to_thread(check_finite, tensor, payload.kind.value)
        found[payload.kind].append(tensor)

    def one(kind: PayloadKind) -> Tensor | None:
        return found[kind][0] if found[kind] else None

    return Conditioning(
        Embeddings(found[PayloadKind.EMBEDDINGS][0], one(PayloadKind.NEGATIVE_EMBEDDINGS)),
        found[PayloadKind.REFERENCE_LATENTS],
        one(PayloadKind.NOISE),
        one(PayloadKind.RESUME_LATENTS),
    )
