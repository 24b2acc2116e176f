"""The video VAE for still pictures: its causal 3-D convolutions as 2-D ones.

A still picture is a single frame after zeros, so that only the last temporal tap of each causal
kernel has an effect, and the convolutions over time alone never run. Exact, and about a third of
the work.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
    QwenImageRMS_norm,
)
from torch import nn

from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.configs import signature_defaults
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.refusals import corrupt, unsupported

DOWNSCALE = 8
_LEAST = 1e-24  # of a square: the library divides by a length of at least 1e-12


class Half(Enum):
    """The part of the VAE that a stage needs: the other one is not loaded."""

    ENCODER = ("encoder", "quant_conv")
    DECODER = ("decoder", "post_quant_conv")
    BOTH = (*ENCODER, *DECODER)


class LastTapConv(QwenImageCausalConv3d):
    """A causal convolution that sees one frame; a subclass, because the library counts them."""

    def __init__(self, conv: QwenImageCausalConv3d) -> None:
        nn.Module.__init__(self)
        kernel = conv.weight[:, :, -1].contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(kernel, requires_grad=False)
        self.bias = conv.bias
        self.stride = conv.stride[1:]
        self.padding = (conv._padding[2], conv._padding[0])

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve one frame; there is no earlier one to remember."""
        frame = x[:, :, 0].contiguous(memory_format=torch.channels_last)
        frame = nn.functional.conv2d(frame, self.weight, self.bias, self.stride, self.padding)
        return frame.unsqueeze(2)

    def extra_repr(self) -> str:
        """Describe the module; the base class expects a third dimension."""
        return f"last temporal tap, {tuple(self.weight.shape)}"


class ChannelNorm(QwenImageRMS_norm):
    """The library's norm over channels, in a fast form for each device.

    torch's norm along a dimension that is not the last is twenty times slower on a CPU, which was
    half of an encoder's time; a product is fast in every memory layout. On a GPU the product's
    passes over memory were half of the VAE's time; torch's own RMS norm is a single pass.
    """

    def __init__(self, norm: QwenImageRMS_norm) -> None:
        nn.Module.__init__(self)
        self.scale, self.gamma, self.bias = norm.scale, norm.gamma, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Bring every pixel's channels to length √channels, then scale them."""
        return self.in_one_pass(x) if x.is_cuda else self.by_a_product(x)

    def in_one_pass(self, x: torch.Tensor) -> torch.Tensor:
        """Use torch's RMS norm, over the last dimension."""
        weight = self.gamma.flatten()
        scaled = nn.functional.rms_norm(x.movedim(1, -1), weight.shape, weight, eps=_LEAST)
        return scaled.movedim(-1, 1) + self.bias

    def by_a_product(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the inverse of the length."""
        wide = x.float()
        squares = torch.linalg.vecdot(wide, wide, dim=1).unsqueeze(1)
        shorten = self.scale * squares.clamp_min(_LEAST).rsqrt()
        return (wide * shorten).to(x.dtype) * self.gamma + self.bias


class ImageVae(nn.Module):
    """The VAE of a checkpoint, for pictures."""

    def __init__(self, vae: AutoencoderKLQwenImage, *, tile_above_pixels: int) -> None:
        super().__init__()
        flatten_(vae)
        self._vae = vae
        self._tile_above_pixels = tile_above_pixels
        self.channels: int = vae.config.z_dim
        shape = (1, self.channels, 1, 1, 1)
        place = {"device": vae.device, "dtype": torch.float32}
        self._mean = nn.Buffer(torch.tensor(vae.config.latents_mean, **place).view(shape))
        self._std = nn.Buffer(torch.tensor(vae.config.latents_std, **place).view(shape))

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        placement: Placement,
        *,
        half: Half = Half.BOTH,
        tile_above_pixels: int = 2048 * 2048,
    ) -> ImageVae:
        """Load `vae/`, or a half of it; pictures of more pixels are decoded in tiles.

        Raises:
            SettingsError: the checkpoint does not hold, or is of a VAE that is not computed.
        """
        _check_supported(checkpoint.config("vae"))
        vae = checkpoint.load_model("vae", AutoencoderKLQwenImage, placement, half.value)
        return cls(vae, tile_above_pixels=tile_above_pixels)

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give the mode of the latents' distribution, normalised.

        Shapes:
            pixels: (pictures, 3, height, width), −1 to 1; sides multiples of 8.
            result: (pictures, channels, height / 8, width / 8), float32, on the CPU.
        """
        return self.to_latents(pixels.to(self._mean.device)).cpu()

    def to_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode like `encode`, with input and result on the device."""
        frames = pixels.to(self._vae.dtype).unsqueeze(2)
        moments = self._vae.quant_conv(self._vae.encoder(frames))
        mode = moments[:, : self.channels].float()
        return ((mode - self._mean) / self._std)[:, :, 0]

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Give the picture of normalised latents.

        Shapes:
            latents: (pictures, channels, height, width).
            result: (pictures, 3, height · 8, width · 8), −1 to 1, on the CPU.
        """
        pixels = latents.shape[-1] * latents.shape[-2] * DOWNSCALE**2
        tiled = pixels > self._tile_above_pixels
        return self.to_pixels(latents.to(self._mean.device), tiled=tiled).cpu()

    def to_pixels(self, latents: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
        """Decode like `decode`, with input and result on the device."""
        z = latents.float().unsqueeze(2)
        z = (z * self._std + self._mean).to(self._vae.dtype)
        if tiled:
            frames = self._vae.tiled_decode(z, return_dict=False)[0]
        else:
            frames = self._vae.decoder(self._vae.post_quant_conv(z))
        return frames[:, :, 0].float().clamp(-1, 1)


def _check_supported(config: dict[str, Any]) -> None:
    vae = {**signature_defaults(AutoencoderKLQwenImage), **config}
    if 2 ** (len(vae["dim_mult"]) - 1) != DOWNSCALE or vae["input_channels"] != 3:
        raise unsupported(
            f"vae makes one latent of {2 ** (len(vae['dim_mult']) - 1)} pixels a side, from "
            f"{vae['input_channels']} colours; the engine computes {DOWNSCALE} and 3"
        )
    for name in ("latents_mean", "latents_std"):
        if len(vae[name]) != vae["z_dim"] or not all(map(math.isfinite, vae[name])):
            raise corrupt(f"vae/config.json: {name} is not {vae['z_dim']} finite numbers")
    if min(vae["latents_std"]) <= 0:
        raise corrupt("vae/config.json: latents_std has a number that is not above 0")


def flatten_(module: nn.Module) -> None:
    """Replace every causal convolution by its last tap, and every norm, in place."""
    for name, child in module.named_children():
        if isinstance(child, QwenImageCausalConv3d):
            setattr(module, name, LastTapConv(child))
        elif isinstance(child, QwenImageRMS_norm) and child.channel_first:
            setattr(module, name, ChannelNorm(child))
        else:
            flatten_(child)


@torch.no_grad()
def restore(vae: nn.Module, flat: nn.Module) -> None:
    """Undo `flatten_` into a fresh VAE: kernels are zero but for their last tap."""
    parameters = dict(vae.named_parameters())
    for name, trained in flat.named_parameters():
        if parameters[name].dim() == trained.dim() + 1:
            parameters[name].zero_()
            parameters[name][:, :, -1] = trained
        else:
            parameters[name].copy_(trained)
