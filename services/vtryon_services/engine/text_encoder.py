"""Stage two: a prompt and its pictures to embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtryon.errors import RequestError
from vtryon.types import ResizeFilter, Stage
from vtryon_services.engine import fitting
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.outputs import check_output
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.prompt import (
    PICTURE_TOKEN,
    PREAMBLE_TOKENS,
    TEMPLATE,
    check_together,
)
from vtryon_services.engine.refusals import library_errors
from vtryon_services.engine.windows import merge_windows_

_PICTURE = "Picture {}: <|vision_start|>{}<|vision_end|>"
# Text may not switch the template's roles or fake a picture.
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


class Seen(NamedTuple):
    """A request's pictures, as input of the vision tower.

    Shapes:
        pixels: (patches of all pictures, values of a patch); grids: (pictures, 3), in patches.
    """

    pixels: torch.Tensor
    grids: torch.Tensor


class PromptInputs(NamedTuple):
    """A prompt and its pictures, ready to be embedded."""

    prompt: str
    seen: Seen


class PromptEncoder:
    """Qwen2.5-VL up to its last hidden state: the logits over the vocabulary are never computed."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Qwen2Tokenizer,
        processor: Qwen2VLImageProcessorPil,
        geometry: Geometry,
        digest: str,
    ) -> None:
        self.model = model.model
        self._tokenizer = tokenizer
        self._processor = processor
        self._geometry = geometry
        self.digest = digest

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> PromptEncoder:
        """Load `text_encoder/`, `tokenizer/` and the picture half of `processor/`."""
        for part in ("tokenizer", "processor"):
            checkpoint.config(part)
        with library_errors("tokenizer"):
            tokenizer = Qwen2Tokenizer.from_pretrained(
                checkpoint.part("tokenizer"), local_files_only=True
            )
        with library_errors("processor"):
            processor = Qwen2VLImageProcessorPil.from_pretrained(
                checkpoint.part("processor"), local_files_only=True
            )
        with library_errors("text_encoder/config.json"):
            config = Qwen2_5_VLConfig.from_pretrained(checkpoint.part("text_encoder"))
        check_together(checkpoint, config, tokenizer, processor)
        model = checkpoint.load_text_encoder(Qwen2_5_VLForConditionalGeneration, placement)
        merge_windows_(model.model.visual)
        digest = checkpoint.digest(Stage.TEXT_ENCODER)
        return cls(model, tokenizer, processor, checkpoint.geometry, digest)

    def prepare(
        self, prompts: Sequence[str], images: Sequence[Image.Image], numerics: Resolved
    ) -> list[PromptInputs]:
        """Check prompts and prepare the pictures that they all speak of.

        Raises:
            RequestError: a prompt holds the model's own control tokens.
        """
        for text in prompts:
            _check_prompt(text)
        seen = self.see(images, numerics)
        return [PromptInputs(prompt, seen) for prompt in prompts]

    def see(self, images: Sequence[Image.Image], numerics: Resolved) -> Seen:
        """Prepare pictures for the vision tower."""
        if not images:
            return Seen(torch.empty(0), torch.empty(0, 3, dtype=torch.int64))
        fitted = [self._fit(image, numerics.resize) for image in images]
        processed = self._processor(images=fitted, return_tensors="pt")
        return Seen(processed["pixel_values"], processed["image_grid_thw"])

    @torch.inference_mode()
    def embed(self, asked: Sequence[PromptInputs]) -> list[torch.Tensor]:
        """Embed prompts in one forward; shorter ones are padded at their end.

        Shapes:
            result: (tokens, width) each, in the placement's element type, on the CPU.

        Raises:
            StageError: the model returns NaN.
        """
        texts = [TEMPLATE.format(self._introduce(one.seen.grids) + one.prompt) for one in asked]
        padded = len(texts) > 1
        tokens = self._tokenizer(texts, padding=padded, padding_side="right", return_tensors="pt")
        device, mask = self.model.device, tokens["attention_mask"]
        ids = tokens["input_ids"].to(device)
        given = {"input_ids": ids, "attention_mask": mask.to(device)}
        seen = [one.seen for one in asked if len(one.seen.grids)]
        if seen:
            pixels = torch.cat([one.pixels for one in seen])
            given["pixel_values"] = pixels.to(device, self.model.dtype)
            given["image_grid_thw"] = torch.cat([one.grids for one in seen]).to(device)
            given["mm_token_type_ids"] = picture_tokens(self.model, ids)
        hidden = self.model(**given).last_hidden_state.cpu()
        lengths = mask.sum(1).tolist()
        found = [row[PREAMBLE_TOKENS:length] for row, length in zip(hidden, lengths, strict=True)]
        for one in found:
            check_output(one, "text encoder")
        return found

    def _fit(self, image: Image.Image, resize: ResizeFilter) -> Image.Image:
        area = self._geometry.condition_area
        multiple = 1 if resize is ResizeFilter.AREA else 32
        return fitting.bring_to_size(image, area, multiple, self._geometry, resize)

    def _introduce(self, grids: torch.Tensor) -> str:
        merge = self._processor.merge_size**2
        counts = [int(grid.prod()) // merge for grid in grids]
        return "".join(
            _PICTURE.format(number, PICTURE_TOKEN * count) for number, count in enumerate(counts, 1)
        )


def picture_tokens(model: Qwen2_5_VLModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mark picture tokens with 1, and text tokens with 0.

    transformers 5 assigns three-dimensional rotary positions only to marked tokens; without the
    marks every token silently has the positions of text.
    """
    return (tokens == model.config.image_token_id).int()


def _check_prompt(prompt: str) -> None:
    if found := _CONTROL_TOKEN.search(prompt):
        raise RequestError(
            f"the prompt holds {found.group()[:40]}, which belongs to the model's template"
        )
