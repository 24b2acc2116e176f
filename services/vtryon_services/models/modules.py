"""The engine's models as modules of tensors only.

Data that depends on sizes and not on weights (rotary tables, masks, windows) is an input, so that
one graph handles every size. Inputs and outputs are FP32 or INT64, whatever the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vtryon_services.engine.families.qwen_image_edit import picture_tokens
from vtryon_services.engine.image_vae import ImageVae

Tensors = dict[str, torch.Tensor]


class VaeEncoderModule(nn.Module):
    """Pictures to latents."""

    def __init__(self, vae: ImageVae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode; as `StillVae.encode`."""
        return self.vae.to_latents(pixels)


class VaeDecoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, vae: ImageVae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode; as `StillVae.decode`, without tiles."""
        return self.vae.to_pixels(latents)


class Transformer(nn.Module):
    """One prediction of velocities, for rows that have their own positions and masks."""

    def __init__(self, model: QwenImageTransformer2DModel) -> None:
        super().__init__()
        self.zero_cond_t: bool = model.zero_cond_t
        if self.zero_cond_t:
            for block in model.transformer_blocks:
                block.zero_cond_t = False
                block.txt_mod = _OfTarget(block.txt_mod)
                block._modulate = _modulate
        self.model = model

    def forward(
        self,
        target: torch.Tensor,
        references: torch.Tensor,
        embeddings: torch.Tensor,
        sigma: torch.Tensor,
        rotary: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Predict; as `engine.forward.Forward`.

        Shapes:
            target: (rows, target tokens, 64); references: (rows, reference tokens, 64);
            embeddings: (rows, text tokens, width); sigma: (rows,); rotary: (rows, text + picture
            tokens, 1, head width / 2, 2), cosine and sine; mask: (rows, 1, 1, text + picture
            tokens), 1 where a token counts, else 0; result: as target.
        """
        model = self.model
        dtype = model.dtype
        text = model.txt_in(model.txt_norm(embeddings.to(dtype)))
        pictures = model.img_in(torch.cat([target, references], dim=1).to(dtype))
        level, is_reference = sigma.to(dtype), None
        if self.zero_cond_t:  # references are modulated as if they had no noise
            level = torch.stack([level, torch.zeros_like(level)], dim=1).flatten()
            kinds = [torch.zeros_like(target[..., :1]), torch.ones_like(references[..., :1])]
            is_reference = torch.cat(kinds, dim=1) > 0
        time = model.time_text_embed(level, pictures)
        if self.zero_cond_t:
            time = time.unflatten(0, (-1, 2))
        positions = {"rotary": rotary, "mask": mask > 0}
        for block in model.transformer_blocks:
            text, pictures = block(
                hidden_states=pictures,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=None,
                temb=time,
                joint_attention_kwargs=positions,
                modulate_index=is_reference,
            )
        if self.zero_cond_t:
            time = time[:, 0]
        velocity = model.proj_out(model.norm_out(pictures, time))
        return velocity[:, : target.shape[1]].float()


class _OfTarget(nn.Module):
    """A modulation that knows the target's noise level alone."""

    def __init__(self, modulation: nn.Module) -> None:
        super().__init__()
        self.modulation = modulation

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Take the first of (rows, 2, width)."""
        return self.modulation(times[:, 0])


def _modulate(
    x: torch.Tensor, given: torch.Tensor, is_reference: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand in for the block's own, which halves its batch: TensorRT can't, for any batch."""
    if is_reference is None:
        each = given[:, None]
    else:
        each = torch.where(is_reference, given[:, 1:], given[:, :1])
    shift, scale, gate = each.chunk(3, dim=-1)
    return x * (1 + scale) + shift, gate


class LanguageModel(nn.Module):
    """Qwen2.5-VL up to its last hidden state, pictures included."""

    def __init__(self, model: qwen.Qwen2_5_VLModel, dropped: int) -> None:
        super().__init__()
        self.dropped = dropped  # tokens of the template's preamble
        for block in model.visual.blocks:
            block.attn = _MaskedAttention(block.attn)
        self.model = model

    def forward(
        self,
        tokens: torch.Tensor,
        attention: torch.Tensor,
        positions: torch.Tensor,
        patches: torch.Tensor,
        places: torch.Tensor,
        window_index: torch.Tensor,
        windows: torch.Tensor,
        pictures: torch.Tensor,
    ) -> torch.Tensor:
        """Embed; as `TextEncoder.embed`. `vision_inputs` makes the last four inputs.

        Shapes:
            tokens, attention: (prompts, tokens); positions: (3, prompts, tokens), of
            `text_positions`; patches: (patches of all pictures, values of one);
            places: (patches, 2), row and column; window_index: (patches / 4,); windows, pictures:
            (patches,), the window and the picture of each in the order of `window_index`;
            result: (prompts, tokens − 64, width): without the template's preamble.
        """
        model, visual = self.model, self.model.visual
        seen = visual(
            patches.to(visual.dtype),
            grid_thw=None,
            position_ids=places,
            cu_seqlens=_alike(pictures),
            window_index=window_index,
            cu_window_seqlens=_alike(windows),
        ).pooler_output
        embedded = model.get_input_embeddings()(tokens)
        shown = tokens == model.config.image_token_id
        which = shown.flatten().long().cumsum(0).sub(1).clamp_min(0).view_as(tokens)
        embedded = torch.where(shown.unsqueeze(-1), seen[which].to(embedded.dtype), embedded)
        count = tokens.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        mask = causal & (attention > 0)[:, None, None, :]
        hidden = model.language_model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": mask},
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return hidden[:, self.dropped :].float()


class _MaskedAttention(nn.Module):
    """The vision tower's attention, with a mask in place of a loop over windows."""

    def __init__(self, attention: qwen.Qwen2_5_VLVisionAttention) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = attention.qkv, attention.proj, attention.num_heads

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_options: object,
    ) -> torch.Tensor:
        """Attend where the mask says so; it comes in the place of the windows' lengths."""
        count = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).view(count, 3, self.heads, -1).unbind(1)
        query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (one.transpose(0, 1)[None] for one in (query, key, value))
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=cu_seqlens)
        return self.proj(mixed[0].transpose(0, 1).reshape(count, -1))


def _alike(numbers: torch.Tensor) -> torch.Tensor:
    return numbers[:, None] == numbers[None, :]


def text_positions(
    model: qwen.Qwen2_5_VLModel,
    tokens: torch.Tensor,
    attention: torch.Tensor,
    grids: torch.Tensor,
) -> torch.Tensor:
    """Make the rotary positions of a prompt's tokens: time, row and column.

    Shapes:
        tokens, attention: (prompts, tokens); grids: (pictures, 3), in patches;
        result: (3, prompts, tokens).
    """
    positions: torch.Tensor
    positions, _ = model.get_rope_index(
        tokens,
        picture_tokens(tokens, model.config.image_token_id),
        image_grid_thw=grids,
        attention_mask=attention,
    )
    return positions


def vision_inputs(grids: torch.Tensor, config: Any) -> Tensors:
    """Compute the size-dependent inputs of `LanguageModel`.

    Args:
        grids: (pictures, 3): 1, rows and columns of patches.
        config: the vision tower's.
    """
    merge = config.spatial_merge_size
    index, ends = get_vision_window_index(grids, merge, config.window_size, config.patch_size)
    per_picture = grids.prod(1)
    return {
        "places": get_vision_position_ids(grids, merge),
        "window_index": index,
        "windows": torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff()),
        "pictures": torch.repeat_interleave(torch.arange(len(grids)), per_picture),
    }
