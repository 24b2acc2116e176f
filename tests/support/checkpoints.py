"""Checkpoints for tests: the shipped one with another geometry, and random ones of other sizes."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.published import SCHEDULER
from vtryon_services.models.make import let_processor_see

PARTS = ("vae", "text_encoder", "tokenizer", "processor", "transformer", "scheduler")


def with_geometry(folder: Path, geometry: Geometry) -> Path:
    """The shipped weights under another geometry."""
    folder.mkdir(parents=True)
    shutil.copy(SHIPPED_CHECKPOINT / "model_index.json", folder)
    for part in PARTS:
        (folder / part).symlink_to(SHIPPED_CHECKPOINT / part)
    (folder / "geometry.json").write_text(geometry.model_dump_json())
    return folder


def random_checkpoint(
    folder: Path,
    geometry: Geometry,
    *,
    zero_cond_t: bool = False,
    pipeline: str = "QwenImageEditPlusPipeline",
) -> Path:
    """Random weights, and sizes that are not the shipped ones: half the latent channels too.

    Its picture processor keeps a picture's aspect, where the shipped one makes 4 × 4 patches of
    every picture: positions and windows differ from picture to picture.
    """
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    index = json.loads((SHIPPED_CHECKPOINT / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": pipeline}))
    (folder / "tokenizer").symlink_to(SHIPPED_CHECKPOINT / "tokenizer")
    shutil.copytree(SHIPPED_CHECKPOINT / "processor", folder / "processor")
    let_processor_see(folder)
    channels = 8
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
        latents_mean=torch.linspace(-0.2, 0.2, channels).tolist(),
        latents_std=torch.linspace(0.5, 1.5, channels).tolist(),
    )
    vae.save_pretrained(folder / "vae")
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * channels,
        out_channels=channels,
        num_layers=3,
        attention_head_dim=24,
        num_attention_heads=2,
        joint_attention_dim=96,
        axes_dims_rope=(8, 8, 8),
        zero_cond_t=zero_cond_t,
    )
    transformer.save_pretrained(folder / "transformer")
    qwen_scheduler().save_pretrained(folder / "scheduler")
    _text_encoder().save_pretrained(folder / "text_encoder")
    (folder / "geometry.json").write_text(geometry.model_dump_json(exclude_unset=True))
    return folder


def qwen_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of Qwen-Image: dynamic shift 0.5 to 0.9, terminal 0.02."""
    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


def _text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    shipped = json.loads((SHIPPED_CHECKPOINT / "text_encoder" / "config.json").read_text())
    shipped["text_config"] |= {
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [4, 6, 6],
        },
    }
    shipped["vision_config"] |= {"out_hidden_size": 96, "hidden_size": 48, "num_heads": 3}
    for name in ("architectures", "dtype", "transformers_version"):
        shipped.pop(name, None)
    config = Qwen2_5_VLConfig(**shipped)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def without_preview_map(folder: Path) -> Path:
    """The shipped checkpoint without what previews are made with."""
    shipped = Geometry.load(SHIPPED_CHECKPOINT)
    return with_geometry(folder, shipped.model_copy(update={"preview": None}))
