"""diffusers' own pipeline on a checkpoint: the reference for pictures and speed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

EditPipeline: TypeAlias = QwenImageEditPipeline | QwenImageEditPlusPipeline
_PIPELINES = {one.__name__: one for one in (QwenImageEditPipeline, QwenImageEditPlusPipeline)}


class _PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """The library's processor without its video half, which would need torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def _mark_picture_tokens(
    encoder: Qwen2_5_VLForConditionalGeneration, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the entry that diffusers 0.42.1 leaves out: picture tokens get their own positions.

    Source: https://github.com/huggingface/diffusers/issues/14194.
    """
    marks = (kwargs["input_ids"] == encoder.config.image_token_id).int()
    return args, {**kwargs, "mm_token_type_ids": marks}


def diffusers_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> EditPipeline:
    """Load a checkpoint into the pipeline that its index names, on the CPU.

    Its text encoder is called as transformers 5 wants it: see `_mark_picture_tokens`.
    """
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    images = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor")
    processor = _PictureProcessor(image_processor=images, tokenizer=tokenizer)
    processor.video_processor = None
    index = json.loads((folder / "model_index.json").read_text())
    pipeline: EditPipeline = _PIPELINES[index["_class_name"]](
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=dtype),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=dtype
        ).eval(),
        tokenizer=tokenizer,
        processor=processor,
        transformer=QwenImageTransformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    pipeline.text_encoder.register_forward_pre_hook(_mark_picture_tokens, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: EditPipeline,
    pictures: Sequence[Image.Image],
    seed: int,
    *,
    true_cfg_scale: float = 1.0,
    **wanted: Any,
) -> Image.Image:
    """Draw one picture, by default without guidance; `wanted` are the pipeline's own arguments."""
    generator = torch.Generator("cpu").manual_seed(seed)
    image: Any = list(pictures)
    if isinstance(pipeline, QwenImageEditPipeline):
        [image] = pictures
    images = pipeline(
        image=image, generator=generator, true_cfg_scale=true_cfg_scale, **wanted
    ).images
    picture: Image.Image = images[0]
    return picture


@contextmanager
def reference_area(pixels: int) -> Iterator[None]:
    """Let the pipelines bring their references to so many pixels, in place of their constants."""
    first, plus = pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
    to_dimensions = first.calculate_dimensions
    with ExitStack() as patches:
        for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):
            patches.enter_context(patch.object(plus, name, pixels))
        patches.enter_context(
            patch.object(
                first, "calculate_dimensions", lambda _, aspect: to_dimensions(pixels, aspect)
            )
        )
        yield
