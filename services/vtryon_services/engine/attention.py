"""Attention over text and picture tokens together, for rows that differ in shape."""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch.nn.functional import scaled_dot_product_attention


class JointAttention:
    """Stands in for diffusers' QwenDoubleStreamAttnProcessor2_0: every row has its own positions.

    Positions come through the transformer's `attention_kwargs` instead of its `pos_embed`, so that
    one forward can take rows of different sizes, and so that the rotation can be compiled.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: None = None,
        attention_mask: None = None,
        image_rotary_emb: None = None,
        *,
        rotary: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend, and give the picture tokens' and the text tokens' results.

        Shapes:
            hidden_states: (rows, picture tokens, width), encoder_hidden_states: (rows, text tokens,
            width); rotary: (rows or 1, text + picture tokens, 1, head width / 2, 2), cosine and
            sine; mask: (rows, 1, 1, text + picture tokens), true where a token counts.
        """
        width = attn.inner_dim // attn.heads

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (-1, width))

        query = torch.cat(
            [
                attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states))),
                attn.norm_q(heads(attn.to_q(hidden_states))),
            ],
            dim=1,
        )
        key = torch.cat(
            [
                attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states))),
                attn.norm_k(heads(attn.to_k(hidden_states))),
            ],
            dim=1,
        )
        value = heads(
            torch.cat([attn.add_v_proj(encoder_hidden_states), attn.to_v(hidden_states)], dim=1)
        )
        mixed = scaled_dot_product_attention(
            rotate(query, rotary).transpose(1, 2),
            rotate(key, rotary).transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        text, picture = mixed.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[0](picture), attn.to_add_out(text)


def rotate(heads: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs of a head's values by their token's angles, in fp32.

    As complex numbers outside a compiled graph, where one product is three times as fast on a CPU
    as real arithmetic; inside it as real numbers, since inductor has no complex ones.

    Source: "RoFormer", Su et al. 2021, eq. 34.
    """
    pairs = heads.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(rotary)
        return torch.view_as_real(turned).flatten(-2).type_as(heads)
    real, imaginary = pairs.unbind(-1)
    cosine, sine = rotary.unbind(-1)
    turned = torch.stack(
        [real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1
    )
    return turned.flatten(-2).type_as(heads)


def install(transformer: QwenImageTransformer2DModel) -> None:
    """Let a transformer attend with `JointAttention`."""
    transformer.set_attn_processor(JointAttention())
    transformer.pos_embed = _NoPositions()


class _NoPositions(torch.nn.Module):
    """Placeholder for `pos_embed`, whose function is in `JointAttention`."""

    def forward(self, *_shapes: object, **_options: object) -> None:
        """Give nothing."""
