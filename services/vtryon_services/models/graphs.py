"""The exportable part of each stage: a module, its inputs, and their possible sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from vtryon.errors import Reason, SettingsError
from vtryon.types import Stage
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import size_of_area
from vtryon_services.engine.image_vae import Half, ImageVae
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import PromptEncoder
from vtryon_services.models.modules import (
    LanguageModel,
    Tensors,
    Transformer,
    VaeDecoder,
    VaeEncoderModule,
    text_positions,
    vision_inputs,
)


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
class ExportGraph:
    """A stage's computation, ready for export.

    Attributes:
        draw: generates random inputs of some sizes, by their names, in the order of `module`'s.
        dynamic: the variable dimensions of each input.
        batches: whether the first dimension of every input is the batch.
        smallest, usual, largest: sizes for which an engine is built.
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


def make_graph(stage: Stage, checkpoint: Checkpoint, placement: Placement) -> ExportGraph:
    """Load a stage's computation as a graph.

    Raises:
        SettingsError: the checkpoint is invalid or unsupported.
    """
    makers = {
        Stage.LATENT_ENCODER: _vae_encoder,
        Stage.TEXT_ENCODER: _language_model,
        Stage.SAMPLING: _transformer,
        Stage.DECODING: _vae_decoder,
    }
    return makers[stage](checkpoint, placement)


def _range(usual_area: int, largest_area: int) -> dict[str, Sizes]:
    side, longest = (size_of_area(area, 1.0, 32).height for area in (usual_area, largest_area))
    return {
        "smallest": Sizes(1, 32, 32, 80),
        "usual": Sizes(1, side, side, 128),
        "largest": Sizes(4, longest, longest, 1024),
    }


def _vae_encoder(checkpoint: Checkpoint, placement: Placement) -> ExportGraph:
    vae = ImageVae.load(checkpoint, placement, half=Half.ENCODER)

    def draw(sizes: Sizes) -> Tensors:
        return {"pixels": torch.rand(sizes.batch, 3, sizes.height, sizes.width) * 2 - 1}

    geometry = checkpoint.geometry
    return ExportGraph(
        "vae_encoder",
        Stage.LATENT_ENCODER,
        "Pictures, −1 to 1, to normalised latents.",
        VaeEncoderModule(vae),
        draw,
        {"pixels": {0: "batch", 2: 16 * Dim("rows", min=2), 3: 16 * Dim("columns", min=2)}},
        "latents",
        (vae.channels, -1, -1),
        batches=True,
        **_range(geometry.reference_area, geometry.max_target_area),
    )


def _vae_decoder(checkpoint: Checkpoint, placement: Placement) -> ExportGraph:
    vae = ImageVae.load(checkpoint, placement, half=Half.DECODER)

    def draw(sizes: Sizes) -> Tensors:
        shape = (sizes.batch, vae.channels, sizes.height // 8, sizes.width // 8)
        return {"latents": torch.randn(shape)}

    geometry = checkpoint.geometry
    return ExportGraph(
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


def _transformer(checkpoint: Checkpoint, placement: Placement) -> ExportGraph:
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
    return ExportGraph(
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


def _language_model(checkpoint: Checkpoint, placement: Placement) -> ExportGraph:
    encoder = PromptEncoder.load(checkpoint, placement)
    model = encoder.model
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
        text = torch.randint(words, (sizes.batch, sizes.text))
        shown = rows * columns // vision.spatial_merge_size**2
        picture = torch.full((sizes.batch, shown), picture_token)
        # A word between the pictures, as in the template: their positions start anew behind it.
        tokens = torch.cat([text[:, :70], picture, text[:, 70:71], picture, text[:, 71:]], dim=1)
        attention = torch.ones_like(tokens)
        attention[-1, -1] = 0
        return {
            "tokens": tokens,
            "attention": attention,
            "positions": text_positions(model, tokens, attention, grids),
            "patches": torch.randn(int(grids.prod(1).sum()), patch),
            **vision_inputs(grids, vision),
        }

    area = checkpoint.geometry.condition_area
    per_token = vision.spatial_merge_size**2
    patches = per_token * Dim("merged", min=2)
    return ExportGraph(
        "language_model",
        Stage.TEXT_ENCODER,
        "Tokens of a prompt and patches of its pictures to embeddings.",
        LanguageModel(model, encoder.family.preamble.tokens),
        draw,
        {
            "tokens": {0: "prompts", 1: "tokens"},
            "attention": {0: "prompts", 1: "tokens"},
            "positions": {1: "prompts", 2: "tokens"},
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
