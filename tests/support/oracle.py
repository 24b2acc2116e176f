"""diffusers' own pipeline on a checkpoint: the oracle of the `diffusers` profile."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class _PictureProcessor(Qwen2VLProcessor):
    """The library's processor without its video half, which would need torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]


def oracle(folder: Path) -> QwenImageEditPlusPipeline:
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    images = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor")
    processor = _PictureProcessor(image_processor=images, tokenizer=tokenizer)
    processor.video_processor = None
    pipeline = QwenImageEditPlusPipeline(
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        ).eval(),
        tokenizer=tokenizer,
        processor=processor,
        transformer=QwenImageTransformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: QwenImageEditPlusPipeline, pictures: list[Image.Image], **wanted) -> Image.Image:
    seed = wanted.pop("seed")
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(image=pictures, generator=generator, **wanted).images[0]
