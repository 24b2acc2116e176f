"""Configurations of models from the shapes of their tensors, for files that have none.

Layers are counted, widths and heads read from shapes; `published` has the rest. A model whose other
settings can't be known from its shapes is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vtryon_services.engine import published
from vtryon_services.engine.headers import Stored
from vtryon_services.engine.refusals import corrupt, unsupported

Tensors = Mapping[str, Stored]


def transformer_config(tensors: Tensors) -> dict[str, Any]:
    """Configure the transformer; the marker of the 2511 model is read by the sampler.

    Raises:
        SettingsError: a tensor is missing, or the heads have another width than 128.
    """
    width, channels = _shape("transformer", tensors, "img_in.weight", 2)
    _, joint = _shape("transformer", tensors, "txt_in.weight", 2)
    [head] = _shape("transformer", tensors, "transformer_blocks.0.attn.norm_q.weight", 1)
    out, _ = _shape("transformer", tensors, "proj_out.weight", 2)
    _check_known("transformer", "the width of a head", head, sum(published.TRANSFORMER_ROPE))
    return {
        "patch_size": 2,
        "in_channels": channels,
        "out_channels": out // 4,
        "num_layers": _count(tensors, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": joint,
        "axes_dims_rope": list(published.TRANSFORMER_ROPE),
    }


def vae_config(tensors: Tensors) -> dict[str, Any]:
    """Configure the VAE; multiples of its width and its statistics are the class's defaults.

    Raises:
        SettingsError: a tensor is missing, or the latents have other channels than 16.
    """
    width, colours, *_ = _shape("vae", tensors, "encoder.conv_in.weight", 5)
    channels, *_ = _shape("vae", tensors, "post_quant_conv.weight", 5)
    _check_known("vae", "the number of latent channels", channels, published.LATENT_CHANNELS)
    return {"base_dim": width, "z_dim": channels, "input_channels": colours}


def text_config(tensors: Tensors, tokens: Mapping[str, int]) -> dict[str, Any]:
    """Configure the text encoder; `tokens` are the ids that its configuration names.

    Raises:
        SettingsError: a tensor is missing, or heads or vision tower are not those of Qwen2.5-VL.
    """
    part = "text_encoder"
    vocabulary, width = _shape(part, tensors, "language_model.embed_tokens.weight", 2)
    layer = "language_model.layers.0"
    inner, _ = _shape(part, tensors, f"{layer}.mlp.up_proj.weight", 2)
    keys, _ = _shape(part, tensors, f"{layer}.self_attn.k_proj.weight", 2)
    for name, size in (("the width", width), ("the width of the keys", keys)):
        _check_multiple(part, name, size, published.TEXT_HEAD)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _count(tensors, "language_model.layers"),
        "num_attention_heads": width // published.TEXT_HEAD,
        "num_key_value_heads": keys // published.TEXT_HEAD,
        "rms_norm_eps": published.RMS_NORM_EPS,
        "rope_parameters": dict(published.ROPE),
    }
    return {"text_config": text, "vision_config": _vision_config(tensors), **tokens}


def _vision_config(tensors: Tensors) -> dict[str, Any]:
    part = "text_encoder"
    patches = _shape(part, tensors, "visual.patch_embed.proj.weight", 5)
    width, colours, frames, patch, _ = patches
    inner, _ = _shape(part, tensors, "visual.blocks.0.mlp.gate_proj.weight", 2)
    merged, _ = _shape(part, tensors, "visual.merger.mlp.0.weight", 2)
    out, _ = _shape(part, tensors, "visual.merger.mlp.2.weight", 2)
    depth = _count(tensors, "visual.blocks")
    _check_known(part, "the number of layers of its vision tower", depth, published.VISION_DEPTH)
    _check_multiple(part, "the width of its vision tower", width, published.VISION_HEAD)
    return {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_heads": width // published.VISION_HEAD,
        "in_channels": colours,
        "patch_size": patch,
        "temporal_patch_size": frames,
        "spatial_merge_size": math.isqrt(merged // width),
        "out_hidden_size": out,
        **published.VISION,
    }


def _shape(part: str, tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise corrupt(f"{part} lacks {name}: it is another model, or not whole")
    shape = tensors[name].shape
    if len(shape) != dimensions or not all(shape):
        raise corrupt(f"{part}: {name} has the shape {shape}; it is to have {dimensions} sides")
    return shape


def _count(tensors: Tensors, blocks: str) -> int:
    numbers = (re.match(rf"{re.escape(blocks)}\.(\d+)\.", name) for name in tensors)
    return 1 + max(int(found[1]) for found in numbers if found)


def _check_known(part: str, name: str, found: int, known: int) -> None:
    if found != known:
        raise unsupported(
            f"{part}: {name} is {found}; without a configuration only models with {known} are "
            "known: take this one in diffusers layout"
        )


def _check_multiple(part: str, name: str, found: int, known: int) -> None:
    if found % known:
        raise unsupported(
            f"{part}: {name} is {found}; without a configuration heads of {known} are known, of "
            "which this is no multiple: take this model in diffusers layout"
        )
