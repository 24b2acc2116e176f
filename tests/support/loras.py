"""A LoRA for the shipped checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def make_lora(path: Path, strength: float = 1.0) -> dict[str, torch.Tensor]:
    """Write a LoRA of all attention layers in ComfyUI's style; returns weights with it merged."""
    merged = {name: one.float() for name, one in load_file(SHIPPED_CHECKPOINT / WEIGHTS).items()}
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, weight in merged.items():
        if ".attn." in name and weight.dim() == 2:
            down = 0.1 * torch.randn((4, weight.shape[1]), generator=generator)
            up = 0.1 * torch.randn((weight.shape[0], 4), generator=generator)
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            tensors[f"{layer}.alpha"] = torch.tensor(4.0)
            merged[name] = weight + strength * up @ down
    save_file(tensors, path)
    return merged
