"""Tensors as safetensors: what lies between two stages, kept in files or sent by REST.

The names: `embeddings`, `negative_embeddings`, `latents`, and for several pictures `latents_1`,
`latents_2` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vtryon.errors import Reason, RequestError
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor


def dump(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Give tensors as safetensors, with facts in the header; BF16 becomes FP32."""
    from safetensors.numpy import save

    arrays = {name: one.to_numpy() for name, one in tensors.items()}
    return bytes(save(arrays, dict(facts)))


def load(data: bytes) -> dict[str, Tensor]:
    """Take tensors from safetensors.

    Raises:
        RequestError: it is none, or holds an element type that has no place on the wire.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as read

    try:
        found = read(data)
    except (SafetensorError, KeyError, TypeError) as error:  # the latter of types numpy lacks
        raise RequestError(f"no safetensors: {error}", reason=Reason.PAYLOAD_INVALID) from error
    return {name: Tensor.from_numpy(array) for name, array in found.items()}


def name_latents(latents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name what the latent encoder gave, in the pictures' order."""
    return {f"latents_{number}": one for number, one in enumerate(latents, 1)}


def name_embeddings(found: Embeddings) -> dict[str, Tensor]:
    """Name what the text encoder gave."""
    named = {"embeddings": found.positive}
    return named if found.negative is None else {**named, "negative_embeddings": found.negative}


def conditioning(texts: Mapping[str, Tensor], pictures: Mapping[str, Tensor]) -> Conditioning:
    """Make what the sampler works from, of one file of each encoder.

    Raises:
        RequestError: they are not such files.
    """
    references = [pictures[name] for name in sorted(pictures) if name.startswith("latents_")]
    if "embeddings" not in texts or not references:
        raise RequestError(
            "sampling takes a file of the text encoder, then one of the latent encoder",
            reason=Reason.PAYLOAD_INVALID,
        )
    given = Embeddings(texts["embeddings"], texts.get("negative_embeddings"))
    return Conditioning(given, references)


def first_latents(found: Mapping[str, Tensor]) -> Tensor:
    """Give what is to be decoded: of several, the first.

    Raises:
        RequestError: there are no latents.
    """
    names = sorted(name for name in found if name.startswith("latents"))
    if not names:
        raise RequestError(
            f"there are no latents, but {', '.join(sorted(found)) or 'nothing'}",
            reason=Reason.PAYLOAD_INVALID,
        )
    return found[names[0]]
