"""Sizes of models, to measure their speed without their weights.

Source: the configurations of Qwen/Qwen-Image-Edit-2511, Qwen/Qwen2.5-VL-7B-Instruct and -3B. Values
that are not listed here are the defaults of diffusers' and transformers' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtryon_services.engine.published import ROPE, VISION

_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    **VISION,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Configurations of a checkpoint's parts."""

    transformer: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen-image-edit-2511": Architecture(
        transformer={"zero_cond_t": True},
        text={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": ROPE,
        },
        vision={**_VISION, "out_hidden_size": 3584},
    ),
    # No published model: the same classes at 1.4 billion parameters, with the text encoder of 3.
    "1b": Architecture(
        transformer={"num_layers": 16, "num_attention_heads": 12, "joint_attention_dim": 2048},
        text={
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": ROPE,
        },
        vision={**_VISION, "out_hidden_size": 2048},
    ),
    # For tests: seconds on a laptop.
    "tiny": Architecture(
        transformer={
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "axes_dims_rope": (8, 12, 12),
            "joint_attention_dim": 64,
            "zero_cond_t": True,
        },
        text={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 1024,
            "rope_parameters": {**ROPE, "mrope_section": [4, 6, 6]},
        },
        vision={
            **_VISION,
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "fullatt_block_indexes": [0],
            "out_hidden_size": 64,
        },
        vae={"base_dim": 8, "num_res_blocks": 1},
    ),
}
