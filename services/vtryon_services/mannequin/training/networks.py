"""The small networks, fresh, and set up so that training begins well."""

from __future__ import annotations

from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageResidualBlock
from torch import nn

CHANNELS = 16


def make_vae(base: int = 12, multipliers: tuple[int, ...] = (1, 2, 4, 6)) -> AutoencoderKLQwenImage:
    """Create a VAE whose residual blocks are initialised to the identity."""
    vae = AutoencoderKLQwenImage(
        base_dim=base,
        z_dim=CHANNELS,
        dim_mult=list(multipliers),
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    for module in vae.modules():
        if isinstance(module, QwenImageResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    return vae


def make_transformer(
    layers: int = 6, heads: int = 4, text_width: int = 128
) -> QwenImageTransformer2DModel:
    """Make a transformer that begins by predicting nothing, through open gates.

    diffusers leaves the modulations at random; at zero, with gates at one, training is stable.
    """
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        axes_dims_rope=(8, 12, 12),
    )
    width = heads * 32
    for block in transformer.transformer_blocks:
        for modulation in (block.img_mod[-1], block.txt_mod[-1]):
            _zero(modulation)
            modulation.bias.data.view(2, 3, width)[:, 2] = 1.0  # shift, scale, gate
    _zero(transformer.proj_out)
    _zero(transformer.norm_out.linear)
    return transformer


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
