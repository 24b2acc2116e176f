"""Stage two: a prompt and its pictures to embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtryon.errors import Reason, RequestError, SettingsError
from vtryon.types import ResizeFilter
from vtryon_services.engine import fitting
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.placement import Placement

# Source: Qwen-Image-Edit's prompt template, as published with diffusers' QwenImageEditPlusPipeline;
# the model was trained with exactly these words. The first 64 tokens are its fixed preamble.
TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PREAMBLE_TOKENS = 64
_PICTURE = "Picture {}: <|vision_start|>{}<|vision_end|>"
_PAD = "<|image_pad|>"
# Text may not switch the template's roles or fake a picture.
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


class Embeddings(NamedTuple):
    """Hidden states of the prompt, and of the negative prompt."""

    positive: torch.Tensor
    negative: torch.Tensor | None


class TextEncoder:
    """Qwen2.5-VL up to its last hidden state: the logits over the vocabulary are never computed."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Qwen2Tokenizer,
        processor: Qwen2VLImageProcessorPil,
        geometry: Geometry,
        digest: str,
    ) -> None:
        self._model = model.model
        self._tokenizer = tokenizer
        self._processor = processor
        self._geometry = geometry
        self.digest = digest

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> TextEncoder:
        """Load `text_encoder/`, `tokenizer/` and the picture half of `processor/`."""
        model = checkpoint.load_model("text_encoder", Qwen2_5_VLForConditionalGeneration, placement)
        tokenizer = Qwen2Tokenizer.from_pretrained(
            checkpoint.part("tokenizer"), local_files_only=True
        )
        processor = Qwen2VLImageProcessorPil.from_pretrained(
            checkpoint.part("processor"), local_files_only=True
        )
        preamble = TEMPLATE.partition("{}")[0]
        if (found := len(tokenizer(preamble)["input_ids"])) != PREAMBLE_TOKENS:
            raise SettingsError(
                f"the tokenizer makes {found} tokens of the template's preamble; "
                f"the model family needs {PREAMBLE_TOKENS}",
                reason=Reason.CHECKPOINT_UNSUPPORTED,
            )
        digest = checkpoint.digest("text_encoder", "tokenizer", "processor")
        return cls(model, tokenizer, processor, checkpoint.geometry, digest)

    def encode(
        self,
        prompt: str,
        negative_prompt: str | None,
        images: Sequence[Image.Image],
        numerics: Resolved,
    ) -> Embeddings:
        """Encode both prompts with the same pictures.

        Shapes:
            result: (tokens, width) each, in the placement's element type, on the CPU.

        Raises:
            RequestError: a prompt holds the model's own control tokens.
        """
        for text in (prompt, negative_prompt or ""):
            _check_prompt(text)
        fitted = [self._fit(image, numerics.resize) for image in images]
        seen = self._processor(images=fitted, return_tensors="pt") if fitted else None
        positive = self._hidden(prompt, seen)
        if negative_prompt is None:
            return Embeddings(positive, None)
        return Embeddings(positive, self._hidden(negative_prompt, seen))

    def _fit(self, image: Image.Image, resize: ResizeFilter) -> Image.Image:
        area = self._geometry.condition_area
        multiple = 1 if resize is ResizeFilter.AREA else 32
        return fitting.bring_to_size(image, area, multiple, self._geometry, resize)

    @torch.inference_mode()
    def _hidden(self, prompt: str, seen: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
        grids = seen["image_grid_thw"] if seen else torch.empty(0, 3)
        tokens = self._tokenizer(TEMPLATE.format(self._introduce(grids) + prompt))
        device = self._model.device
        given = {
            "input_ids": torch.tensor([tokens["input_ids"]], device=device),
            "attention_mask": torch.tensor([tokens["attention_mask"]], device=device),
        }
        if seen:
            given["pixel_values"] = seen["pixel_values"].to(device, self._model.dtype)
            given["image_grid_thw"] = seen["image_grid_thw"].to(device)
        hidden = self._model(**given).last_hidden_state
        return hidden[0, PREAMBLE_TOKENS:].cpu()

    def _introduce(self, grids: torch.Tensor) -> str:
        merge = self._processor.merge_size**2
        counts = [int(grid.prod()) // merge for grid in grids]
        return "".join(
            _PICTURE.format(number, _PAD * count) for number, count in enumerate(counts, 1)
        )


def _check_prompt(prompt: str) -> None:
    if found := _CONTROL_TOKEN.search(prompt):
        raise RequestError(
            f"the prompt holds {found.group()[:40]}, which belongs to the model's template"
        )
