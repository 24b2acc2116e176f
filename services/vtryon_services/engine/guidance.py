"""Classifier-free guidance with a real negative prediction, and its norm limits."""

from __future__ import annotations

import torch

from vtryon.types import GuidanceNorm
from vtryon_services.engine.defaults import Guidance

PATCH = 4  # 2×2 latent pixels packed into one token


def guide(
    positive: torch.Tensor,
    negative: torch.Tensor,
    latents: torch.Tensor,
    sigma: float,
    guidance: Guidance,
    norm: GuidanceNorm,
) -> torch.Tensor:
    """Combine two velocities: n + s·(p − n), rescaled, and brought back to length.

    Shapes:
        all: (tokens, 64), packed.

    Source: "Classifier-Free Diffusion Guidance", Ho and Salimans 2022, eq. 6. The norms are those
    of diffusers' QwenImageEditPlusPipeline (velocity) and of ComfyUI's CFGNorm node (x0).
    """
    guided = negative + guidance.scale * (positive - negative)
    if guidance.rescale:
        guided = rescale(guided, positive, guidance.rescale)
    match norm:
        case GuidanceNorm.NONE:
            return guided
        case GuidanceNorm.VELOCITY:
            return guided * (
                positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
            )
        case GuidanceNorm.X0:
            return _bound_x0(positive, guided, latents, sigma)


def rescale(guided: torch.Tensor, positive: torch.Tensor, share: float) -> torch.Tensor:
    """Bring the standard deviation of a guided velocity back to the conditional one's, by a share.

    Shapes:
        guided, positive: (tokens, 64), packed.

    Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed", Lin et al. 2024, sec.
    3.4; `guidance_rescale` of diffusers' pipelines.
    """
    return guided * (share * positive.std() / guided.std() + 1 - share)


def _bound_x0(
    positive: torch.Tensor, guided: torch.Tensor, latents: torch.Tensor, sigma: float
) -> torch.Tensor:
    wanted = _pixels(latents - sigma * positive)
    x0 = _pixels(latents - sigma * guided)
    scale = wanted.norm(dim=-2, keepdim=True) / (x0.norm(dim=-2, keepdim=True) + 1e-8)
    bounded = (x0 * scale.clamp(0, 1)).flatten(-2)
    return (latents - bounded) / sigma


def _pixels(packed: torch.Tensor) -> torch.Tensor:
    """(tokens, 64) → (tokens, 16, 4): channels by the four latent pixels of a token."""
    return packed.unflatten(-1, (-1, PATCH))
