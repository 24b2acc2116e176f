"""Checkpoints with random weights and a real architecture, to measure speed without the weights.

Their results are noise; every tensor has the shape, the element type and the cost of the real one.
The tokenizer is the shipped checkpoint's, whose vocabulary is smaller: prompts have more tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, write_digests
from vtryon_services.engine.geometry import FILE_NAME, Geometry
from vtryon_services.engine.published import SCHEDULER
from vtryon_services.models.architectures import ARCHITECTURES, Architecture

_SPREAD = 0.02  # of the weights: outputs stay finite through any depth
_FROM_SHIPPED = ("tokenizer", "processor")


def make_random(
    folder: Path,
    like: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    layers: int | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a checkpoint with random weights, into a new folder.

    Args:
        folder: to create.
        like: a name of `ARCHITECTURES`.
        dtype: of the weights.
        layers: of the transformer, in place of the architecture's.
        device: where the weights are generated: a GPU is faster.
        report: called with the name of each part in turn.

    Raises:
        FileExistsError: the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name another folder, or remove it")
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copy(SHIPPED_CHECKPOINT / "model_index.json", scratch)
    for part in _FROM_SHIPPED:
        shutil.copytree(SHIPPED_CHECKPOINT / part, scratch / part)
    architecture = ARCHITECTURES[like]
    let_processor_see(scratch)
    for part, build in _builders(architecture, layers).items():
        report(part)
        with init_empty_weights():
            model = build()
        _randomise(model, device, dtype)
        model.to("cpu").save_pretrained(scratch / part)
        del model
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(scratch / "scheduler")
    (scratch / FILE_NAME).write_text(Geometry().model_dump_json(indent=2) + "\n")
    report("digests")
    write_digests(scratch)
    scratch.rename(folder)


def _builders(architecture: Architecture, layers: int | None) -> dict[str, Callable[[], Any]]:
    transformer = dict(architecture.transformer)
    if layers is not None:
        transformer["num_layers"] = layers
    text = {**architecture.text, "tie_word_embeddings": False}
    shipped = json.loads((SHIPPED_CHECKPOINT / "text_encoder" / "config.json").read_text())
    tokens = {name: value for name, value in shipped.items() if name.endswith("_token_id")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=dict(architecture.vision), **tokens)
    return {
        "vae": lambda: AutoencoderKLQwenImage(**architecture.vae),
        "text_encoder": lambda: Qwen2_5_VLForConditionalGeneration(config),
        "transformer": lambda: QwenImageTransformer2DModel(**transformer),
    }


@torch.no_grad()
def _randomise(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Draw the matrices; scales are 1 and shifts 0. Parameters come in without memory."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            made = torch.empty(parameter.shape, device=device, dtype=dtype)
            if parameter.dim() > 1 and name != "gamma":
                made.normal_(0, _SPREAD)
            else:
                made.fill_(0 if name == "bias" else 1)
            setattr(module, name, nn.Parameter(made, requires_grad=False))


def let_processor_see(folder: Path) -> None:
    """Give the picture processor the real limits instead of the small checkpoint's."""
    path = folder / "processor" / "processor_config.json"
    content = json.loads(path.read_text())
    sizes = content.get("image_processor", content)
    sizes["size"] = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    sizes.pop("min_pixels", None)
    sizes.pop("max_pixels", None)
    path.write_text(json.dumps(content, indent=2) + "\n")
