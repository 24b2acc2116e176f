"""Tensors as safetensors: inputs and outputs of stages, in files or over REST.

The names: `embeddings`, `negative_embeddings`, `latents`, and for several pictures `latents_1`,
`latents_2` and so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vtryon.errors import Reason, RequestError
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor

MAX_TENSORS = 16
MAX_HEADER_BYTES = 64 * 1024
_MAX_RANK = 8
_LATENTS_RANK = 3
_MAX_NAME = 64
_LENGTH_BYTES = 8
_METADATA = "__metadata__"


def dump(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Give tensors as safetensors, with facts in the header; BF16 becomes FP32."""
    from safetensors.numpy import save

    arrays = {name: one.to_numpy() for name, one in tensors.items()}
    return bytes(save(arrays, dict(facts)))


def load(data: bytes) -> dict[str, Tensor]:
    """Read tensors from safetensors; the header is checked before anything is allocated.

    Raises:
        RequestError: the data is not safetensors, has too many tensors, or has a shape or element
            type that the protocol does not support.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as read

    _check_header(data)
    try:
        found = read(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # of types numpy lacks
        raise _invalid(f"no safetensors: {error}") from error
    return {name: Tensor.from_numpy(array) for name, array in found.items()}


def _check_header(data: bytes) -> None:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > len(data) - _LENGTH_BYTES:
        raise _invalid("no safetensors: its header would be longer than the file")
    if length > MAX_HEADER_BYTES:
        raise _invalid(f"its header has {length} bytes; the limit is {MAX_HEADER_BYTES}")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        shapes = {name: one["shape"] for name, one in header.items() if name != _METADATA}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _invalid("no safetensors: its header is broken") from None
    if len(shapes) > MAX_TENSORS:
        raise _invalid(f"it holds {len(shapes)} tensors; the limit is {MAX_TENSORS}")
    for name, shape in shapes.items():
        if not _is_shape(shape):
            words = f"a shape has 1 to {_MAX_RANK} dimensions of 1 or more"
            raise _invalid(f"{name[:_MAX_NAME]!r}: {words}")


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and 1 <= len(shape) <= _MAX_RANK
        and all(type(side) is int and side >= 1 for side in shape)
    )


def name_latents(latents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the outputs of the latent encoder, in the order of the pictures."""
    return {f"latents_{number}": one for number, one in enumerate(latents, 1)}


def name_embeddings(found: Embeddings) -> dict[str, Tensor]:
    """Name the outputs of the text encoder."""
    named = {"embeddings": found.positive}
    return named if found.negative is None else {**named, "negative_embeddings": found.negative}


def conditioning(texts: Mapping[str, Tensor], pictures: Mapping[str, Tensor]) -> Conditioning:
    """Build the sampler's input from one file of each encoder.

    Raises:
        RequestError: a file is not of its encoder, or has tensors that would not be used.
    """
    numbered = [f"latents_{number}" for number in range(1, len(pictures) + 1)]
    if "embeddings" not in texts or not pictures or set(pictures) != set(numbered):
        raise _invalid(
            "sampling takes a file of the text encoder, with embeddings, then one of the latent "
            f"encoder, with latents_1, latents_2 and so on; the files hold {_listed(texts)} and "
            f"{_listed(pictures)}"
        )
    if unused := set(texts) - {"embeddings", "negative_embeddings"}:
        raise _invalid(f"the text encoder's file holds {_listed(unused)}, which is not used")
    for name in numbered:
        _check_latents(name, pictures[name])
    given = Embeddings(texts["embeddings"], texts.get("negative_embeddings"))
    return Conditioning(given, [pictures[name] for name in numbered])


def only_latents(found: Mapping[str, Tensor]) -> Tensor:
    """Return the input of the decoder: latents of the sampler, or of one picture.

    Raises:
        RequestError: the file has no latents, or has further tensors.
    """
    name = next((one for one in ("latents", "latents_1") if one in found), None)
    if name is None:
        raise _invalid(f"there are no latents, but {_listed(found)}")
    if unused := set(found) - {name}:
        raise _invalid(
            f"decoding takes one tensor; the file holds {name}, and {_listed(unused)}, which would "
            "not be used: encode one picture per file, or keep one tensor in the file"
        )
    _check_latents(name, found[name])
    return found[name]


def _check_latents(name: str, tensor: Tensor) -> None:
    if len(tensor.spec.shape) != _LATENTS_RANK:
        shape = tensor.spec.shape
        raise _invalid(f"{name} has the shape {shape}; latents have channels, height and width")


def _listed(names: Sequence[str] | Mapping[str, Tensor] | set[str]) -> str:
    return ", ".join(name[:_MAX_NAME] for name in sorted(names)) or "nothing"


def _invalid(words: str) -> RequestError:
    return RequestError(words, reason=Reason.PAYLOAD_INVALID)
