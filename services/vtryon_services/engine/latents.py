"""Latents: packing into tokens, starting noise, previews."""

from __future__ import annotations

import torch
from PIL import Image

from vtryon_services.engine.geometry import PreviewMap


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Make each 2×2 of latent pixels a token.

    Shapes:
        latents: (channels, height, width), sides even.
        result: (height / 2 · width / 2, channels · 4).
    """
    channels, height, width = latents.shape
    blocks = latents.reshape(channels, height // 2, 2, width // 2, 2)
    return blocks.permute(1, 3, 0, 2, 4).reshape(-1, channels * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Undo `pack`.

    Shapes:
        tokens: (height / 2 · width / 2, channels · 4).
        result: (channels, height, width).
    """
    blocks = tokens.reshape(height // 2, width // 2, -1, 2, 2)
    return blocks.permute(2, 0, 3, 1, 4).reshape(-1, height, width)


def draw_noise(seed: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Draw starting noise, on the CPU, so that a seed means the same on every device.

    Shapes:
        result: (channels, height, width), float32; drawn as (1, 1, channels, height, width), which
        is how diffusers' pipeline draws it.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, 1, channels, height, width), generator=generator)[0, 0]


def preview(x0: torch.Tensor, colours: PreviewMap, max_pixels: int) -> Image.Image:
    """Draw a small picture of an x0 estimate, one pixel per latent at most.

    Shapes:
        x0: (channels, height, width).
    """
    weights = torch.tensor(colours.weights, dtype=torch.float32)
    rgb = torch.einsum("chw,cr->hwr", x0.float().cpu(), weights) + torch.tensor(colours.bias)
    picture = Image.fromarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    if 0 < max_pixels < picture.width * picture.height:
        factor = (max_pixels / (picture.width * picture.height)) ** 0.5
        smaller = [max(1, int(side * factor)) for side in picture.size]
        picture = picture.resize((smaller[0], smaller[1]), Image.Resampling.BOX)
    return picture
