"""Stage two: a prompt and its pictures to embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtryon.errors import RequestError
from vtryon.types import Stage
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.outputs import check_output
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.prompt import check_together
from vtryon_services.engine.refusals import library_errors
from vtryon_services.engine.windows import merge_windows_

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
        model: Qwen2_5_VLModel,
        tokenizer: Qwen2Tokenizer,
        processor: Qwen2VLImageProcessorPil,
        family: Family,
        digest: str,
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._processor = processor
        self.family = family
        self.digest = digest

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> PromptEncoder:
        """Load `text_encoder/`, `tokenizer/` and the picture half of `processor/`."""
        checkpoint.config("tokenizer")
        with library_errors("tokenizer"):
            tokenizer = Qwen2Tokenizer.from_pretrained(
                checkpoint.part("tokenizer"), local_files_only=True
            )
        with library_errors("processor"):
            processor = Qwen2VLImageProcessorPil.from_dict(checkpoint.config("processor"))
        with library_errors("text_encoder/config.json"):
            config = Qwen2_5_VLConfig.from_dict(checkpoint.config("text_encoder"))
        check_together(checkpoint, config, tokenizer, processor)
        weights = checkpoint.weights("text_encoder")
        model = weights.load(lambda: Qwen2_5_VLModel(config), placement)
        merge_windows_(model.visual)
        digest = checkpoint.digest(Stage.TEXT_ENCODER)
        return cls(model, tokenizer, processor, checkpoint.family, digest)

    def prepare(
        self, prompts: Sequence[str], images: Sequence[Image.Image], numerics: Resolved
    ) -> list[PromptInputs]:
        """Check prompts and prepare the pictures that they all speak of.

        Raises:
            RequestError: a prompt holds the model's own control tokens, or the model can't use so
                many pictures.
        """
        self.family.check_pictures(len(images))
        for text in prompts:
            _check_prompt(text)
        seen = self.see(images, numerics)
        return [PromptInputs(prompt, seen) for prompt in prompts]

    def see(self, images: Sequence[Image.Image], numerics: Resolved) -> Seen:
        """Prepare pictures for the vision tower."""
        if not images:
            return Seen(torch.empty(0), torch.empty(0, 3, dtype=torch.int64))
        fitted = [self.family.fit_condition(image, numerics.resize) for image in images]
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
        texts = [self.write(one) for one in asked]
        padded = len(texts) > 1
        tokens = self._tokenizer(texts, padding=padded, padding_side="right", return_tensors="pt")
        device, mask = self.model.device, tokens["attention_mask"]
        ids = tokens["input_ids"].to(device)
        given = {"input_ids": ids, "attention_mask": mask.to(device)}
        seen = [one.seen for one in asked if len(one.seen.grids)]
        if seen:
            pixels = torch.cat([one.pixels for one in seen]).to(device, self.model.dtype)
            grids = torch.cat([one.grids for one in seen]).to(device)
            picture_token = self.model.config.image_token_id
            given |= self.family.picture_inputs(ids, pixels, grids, picture_token)
        hidden = self.model(**given).last_hidden_state.cpu()
        lengths = mask.sum(1).tolist()
        start = self.family.preamble.tokens
        found = [row[start:length] for row, length in zip(hidden, lengths, strict=True)]
        for one in found:
            check_output(one, "text encoder")
        return found

    def write(self, asked: PromptInputs) -> str:
        """Write the text that is tokenized: the prompt in the model's template."""
        merge = self._processor.merge_size**2
        patches = [int(grid.prod()) // merge for grid in asked.seen.grids]
        return self.family.write_prompt(asked.prompt, patches)


def _check_prompt(prompt: str) -> None:
    if found := _CONTROL_TOKEN.search(prompt):
        raise RequestError(
            f"the prompt holds {found.group()[:40]}, which belongs to the model's template"
        )
