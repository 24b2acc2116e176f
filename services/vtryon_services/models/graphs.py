"""The engine's models as graphs of tensors alone: what ONNX can hold of each stage.

What depends on sizes and not on weights (rotary tables, masks, windows) is an input, so that one
graph takes every size. Inputs and outputs are FP32 or INT64, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn
from torch.export import Dim
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vtryon.errors import Reason, SettingsError
from vtryon.types import Stage
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import size_of_area
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.still_vae import StillVae
from vtryon_services.engine.text_encoder import PREAMBLE_TOKENS, TextEncoder

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes that a graph can be run with.

    Attributes:
        batch: pictures, prompts or rows; text: tokens of a prompt, without pictures.
        height, width: of every picture in pixels, multiples of 32.
    """

    batch: int
    height: int
    width: int
    text: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A stage's arithmetic, ready to be exported.

    Attributes:
        draw: makes random inputs of given sizes, by their names, in the order of `module`'s.
        dynamic: the dimensions of each input that vary.
        batches: the first dimension of every input counts requests.
        smallest, usual, largest: what an engine is to be built for.
    """

    name: str
    stage: Stage
    about: str
    module: nn.Module
    draw: Callable[[Sizes], Tensors]
    dynamic: Mapping[str, Mapping[int, Any]]
    output: str
    output_dims: tuple[int, ...]
    batches: bool
    smallest: Sizes
    usual: Sizes
    largest: Sizes


def make_graph(stage: Stage, checkpoint: Checkpoint, placement: Placement) -> Graph:
    """Load what a stage computes with, as a graph.

    Raises:
        SettingsError: the checkpoint does not hold, or can't be computed.
    """
    makers = {
        Stage.LATENT_ENCODER: _vae_encoder,
        Stage.TEXT_ENCODER: _language_model,
        Stage.SAMPLING: _transformer,
        Stage.DECODING: _vae_decoder,
    }
    return makers[stage](checkpoint, placement)


class VaeEncoder(nn.Module):
    """Pictures to latents."""

    def __init__(self, vae: StillVae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode; as `StillVae.encode`."""
        return self.vae.to_latents(pixels)


class VaeDecoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, vae: StillVae) -> None:
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

    def __init__(self, model: qwen.Qwen2_5_VLModel) -> None:
        super().__init__()
        for block in model.visual.blocks:
            block.attn = _MaskedAttention(block.attn)
        self.model = model

    def forward(
        self,
        tokens: torch.Tensor,
        attention: torch.Tensor,
        patches: torch.Tensor,
        places: torch.Tensor,
        window_index: torch.Tensor,
        windows: torch.Tensor,
        pictures: torch.Tensor,
    ) -> torch.Tensor:
        """Embed; as `TextEncoder.embed`. `vision_inputs` makes the last four inputs.

        Shapes:
            tokens, attention: (prompts, tokens); patches: (patches of all pictures, values of one);
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
            use_cache=False,
        ).last_hidden_state
        return hidden[:, PREAMBLE_TOKENS:].float()


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


def vision_inputs(grids: torch.Tensor, config: Any) -> Tensors:
    """Make what `LanguageModel` wants to know of pictures' sizes.

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


def _range(usual_area: int, largest_area: int) -> dict[str, Sizes]:
    side, longest = (size_of_area(area, 1.0, 32).height for area in (usual_area, largest_area))
    return {
        "smallest": Sizes(1, 32, 32, 80),
        "usual": Sizes(1, side, side, 128),
        "largest": Sizes(4, longest, longest, 1024),
    }


def _vae_encoder(checkpoint: Checkpoint, placement: Placement) -> Graph:
    vae = StillVae.load(checkpoint, placement)

    def draw(sizes: Sizes) -> Tensors:
        return {"pixels": torch.rand(sizes.batch, 3, sizes.height, sizes.width) * 2 - 1}

    geometry = checkpoint.geometry
    return Graph(
        "vae_encoder",
        Stage.LATENT_ENCODER,
        "Pictures, −1 to 1, to normalised latents.",
        VaeEncoder(vae),
        draw,
        {"pixels": {0: "batch", 2: 16 * Dim("rows", min=2), 3: 16 * Dim("columns", min=2)}},
        "latents",
        (vae.channels, -1, -1),
        batches=True,
        **_range(geometry.reference_area, geometry.max_target_area),
    )


def _vae_decoder(checkpoint: Checkpoint, placement: Placement) -> Graph:
    vae = StillVae.load(checkpoint, placement)

    def draw(sizes: Sizes) -> Tensors:
        return {
            "latents": torch.randn(sizes.batch, vae.channels, sizes.height // 8, sizes.width // 8)
        }

    geometry = checkpoint.geometry
    return Graph(
        "vae_decoder",
        Stage.DECODING,
        "Normalised latents to pictures, −1 to 1.",
        VaeDecoder(vae),
        draw,
        {"latents": {0: "batch", 2: "height", 3: "width"}},
        "pixels",
        (3, -1, -1),
        batches=True,
        **_range(geometry.reference_area, geometry.max_target_area),
    )


def _transformer(checkpoint: Checkpoint, placement: Placement) -> Graph:
    sampler = Sampler.load(checkpoint, placement)
    channels, half = 4 * sampler.channels, sum(sampler.transformer.config.axes_dims_rope) // 2

    def draw(sizes: Sizes) -> Tensors:
        rows, tokens = sizes.batch, sizes.height * sizes.width // 256
        every = sizes.text + 3 * tokens
        angles = torch.rand(rows, every, 1, half) * 6
        mask = torch.ones(rows, 1, 1, every)
        mask[-1, ..., -1] = 0
        return {
            "target": torch.randn(rows, tokens, channels),
            "references": torch.randn(rows, 2 * tokens, channels),
            "embeddings": torch.randn(rows, sizes.text, sampler.width),
            "sigma": torch.rand(rows),
            "rotary": torch.stack([angles.cos(), angles.sin()], dim=-1),
            "mask": mask,
        }

    geometry = checkpoint.geometry
    return Graph(
        "transformer",
        Stage.SAMPLING,
        "One step's velocities; schedule, guidance and Euler's step stay outside.",
        Transformer(sampler.transformer),
        draw,
        {
            "target": {0: "rows", 1: "target"},
            "references": {0: "rows", 1: "references"},
            "embeddings": {0: "rows", 1: "text"},
            "sigma": {0: "rows"},
            "rotary": {0: "rows", 1: "tokens"},
            "mask": {0: "rows", 3: "tokens"},
        },
        "velocity",
        (-1, channels),
        batches=True,
        **_range(geometry.reference_area, geometry.max_target_area),
    )


def _language_model(checkpoint: Checkpoint, placement: Placement) -> Graph:
    model = TextEncoder.load(checkpoint, placement).model
    if model.language_model.has_sliding_layers:
        raise SettingsError(
            "the text encoder attends by a sliding window, which its graph does not",
            reason=Reason.CHECKPOINT_UNSUPPORTED,
        )
    vision = model.config.vision_config
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    side = vision.patch_size * vision.spatial_merge_size
    picture_token, words = model.config.image_token_id, model.config.vision_start_token_id

    def draw(sizes: Sizes) -> Tensors:
        rows, columns = (
            vision.spatial_merge_size * max(1, pixels // side)
            for pixels in (sizes.height, sizes.width)
        )
        grids = torch.tensor([[1, rows, columns]] * 2 * sizes.batch)
        shown = 2 * rows * columns // vision.spatial_merge_size**2
        text = torch.randint(words, (sizes.batch, sizes.text))
        tokens = torch.full((sizes.batch, sizes.text + shown), picture_token)
        tokens[:, :70], tokens[:, 70 + shown :] = text[:, :70], text[:, 70:]
        attention = torch.ones_like(tokens)
        attention[-1, -1] = 0
        return {
            "tokens": tokens,
            "attention": attention,
            "patches": torch.randn(int(grids.prod(1).sum()), patch),
            **vision_inputs(grids, vision),
        }

    area = checkpoint.geometry.condition_area
    per_token = vision.spatial_merge_size**2
    patches = per_token * Dim("merged", min=2)
    return Graph(
        "language_model",
        Stage.TEXT_ENCODER,
        "Tokens of a prompt and patches of its pictures to embeddings.",
        LanguageModel(model),
        draw,
        {
            "tokens": {0: "prompts", 1: "tokens"},
            "attention": {0: "prompts", 1: "tokens"},
            "patches": {0: patches},
            "places": {0: patches},
            "window_index": {0: "merged"},
            "windows": {0: patches},
            "pictures": {0: patches},
        },
        "embeddings",
        (-1, -1, model.config.text_config.hidden_size),
        batches=False,
        **_range(area, 4 * area),
    )
