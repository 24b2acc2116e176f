"""Qwen-Image-Edit: the first model, 2509 and 2511.

2511 differs from 2509 by `zero_cond_t` in the configuration of its transformer alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from vtryon.errors import Reason, RequestError
from vtryon.events import Fit
from vtryon.types import FitMethod, Profile, ResizeFilter
from vtryon_services.engine.defaults import DEFAULTS
from vtryon_services.engine.families.family import Family, Preamble
from vtryon_services.engine.geometry import Geometry, Size
from vtryon_services.engine.refusals import unsupported

if TYPE_CHECKING:  # Triton's clients know a family without torch
    import torch

# Source: Qwen-Image-Edit's prompt template, as published with diffusers' pipelines; the models were
# trained with exactly these words.
_PREAMBLE = Preamble(
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n",
    64,
)
_END = "<|im_end|>\n<|im_start|>assistant\n"
_PICTURE = "<|vision_start|>{}<|vision_end|>"
_CONDITION_MULTIPLE = 32
# ComfyUI rounds to 8, and some of its sizes then give odd latents, which packing can't take.
_AREA_MULTIPLE = 16


class QwenImageEditPlus(Family):
    """2509 and 2511: numbered pictures, smaller for the text encoder than for the VAE."""

    pipeline = "QwenImageEditPlusPipeline"
    preamble = _PREAMBLE
    picture_token = "<|image_pad|>"  # noqa: S105

    def __init__(self, read: Geometry) -> None:
        self.geometry = read

    def check_pictures(self, count: int) -> None:
        """Accept any number: the settings of the stages limit it."""

    def write_prompt(self, prompt: str, pictures: Sequence[int]) -> str:
        """Put a prompt into the template, after "Picture 1: " and so on."""
        shown = "".join(
            f"Picture {number}: {self._show(count)}" for number, count in enumerate(pictures, 1)
        )
        return f"{self.preamble.text}{shown}{prompt}{_END}"

    def _show(self, patches: int) -> str:
        return _PICTURE.format(self.picture_token * patches)

    def picture_inputs(
        self, tokens: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor, picture_token: int
    ) -> dict[str, torch.Tensor]:
        """Name patches and grids, and mark the tokens of pictures."""
        return {
            "pixel_values": pixels,
            "image_grid_thw": grids,
            "mm_token_type_ids": picture_tokens(tokens, picture_token),
        }

    def fit_condition(self, picture: Image.Image, resize: ResizeFilter) -> Image.Image:
        """Scale to the condition area; ComfyUI's way rounds to whole pixels alone."""
        multiple = 1 if resize is ResizeFilter.AREA else _CONDITION_MULTIPLE
        area = self.geometry.condition_area
        return self._bring(picture, area, multiple, resize)

    def fit_reference(self, picture: Image.Image, resize: ResizeFilter) -> Image.Image:
        """Scale to the reference area."""
        in_comfy = resize is ResizeFilter.AREA
        multiple = _AREA_MULTIPLE if in_comfy else self.geometry.reference_multiple
        area = self.geometry.reference_area
        return self._bring(picture, area, multiple, resize)

    def _bring(
        self, picture: Image.Image, area: int, multiple: int, resize: ResizeFilter
    ) -> Image.Image:
        from vtryon_services.engine.fitting import bring_to_size  # which imports torch

        return bring_to_size(picture, area, multiple, self.geometry, resize)

    def with_note(self, fit: Fit, resize: ResizeFilter) -> Fit:
        """Note where ComfyUI's node for this model would have come to another size.

        Where ComfyUI's size gives an odd number of latents, it pads them with those of the opposite
        edge; sides are rounded to multiples of 16 here instead.
        """
        if resize is not ResizeFilter.AREA or fit.method is not FitMethod.AREA:
            return fit
        factor = math.sqrt(self.geometry.reference_area / (fit.from_width * fit.from_height))
        sides = (fit.from_width, fit.from_height)
        theirs = Size(*(self._round_as_comfy(side * factor) for side in sides))
        if theirs == (fit.to_width, fit.to_height):
            return fit
        note = f"ComfyUI scales it to {theirs}; sides are rounded to multiples of 16 here"
        return replace(fit, note=note)

    def _round_as_comfy(self, side: float) -> int:
        """Round to a multiple of 8, as TextEncodeQwenImageEditPlus does."""
        return round(side / 8) * 8


class QwenImageEdit(QwenImageEditPlus):
    """The first edit model: one picture, without a number, of one size for both encoders."""

    pipeline = "QwenImageEditPipeline"

    def __init__(self, read: Geometry) -> None:
        area = read.reference_area
        if "condition_area" in read.model_fields_set and read.condition_area != area:
            raise unsupported(
                f"geometry.json has condition_area {read.condition_area} and reference_area "
                f"{area}; {self.pipeline} brings a picture to one size for both encoders: take "
                "condition_area out"
            )
        # Source: the published example of the model; its scale is that of 2509.
        own = {Profile.DIFFUSERS: DEFAULTS[Profile.DIFFUSERS].model_copy(update={"steps": 50})}
        update = {"condition_area": area, "defaults": own | read.defaults}
        super().__init__(read.model_copy(update=update))

    def check_pictures(self, count: int) -> None:
        """Accept one picture."""
        if count != 1:
            raise RequestError(
                f"the checkpoint is of the first edit model ({self.pipeline}), which edits exactly "
                f"one picture; the request has {count or 'none'}: send the person alone, without "
                f"garments, or serve a checkpoint of {QwenImageEditPlus.pipeline} (2509 or 2511)",
                reason=Reason.PAYLOAD_INVALID,
            )

    def write_prompt(self, prompt: str, pictures: Sequence[int]) -> str:
        """Put a prompt into the template, after its picture."""
        [patches] = pictures
        return f"{self.preamble.text}{self._show(patches)}{prompt}{_END}"

    def fit_condition(self, picture: Image.Image, resize: ResizeFilter) -> Image.Image:
        """Scale to the size of the reference; ComfyUI's way rounds to whole pixels alone."""
        if resize is ResizeFilter.AREA:
            return super().fit_condition(picture, resize)
        return self.fit_reference(picture, resize)

    def _round_as_comfy(self, side: float) -> int:
        """Round, then crop to a multiple of 8, as TextEncodeQwenImageEdit and its VAE do."""
        return round(side) // 8 * 8


def picture_tokens(tokens: torch.Tensor, picture_token: int) -> torch.Tensor:
    """Mark picture tokens with 1, and text tokens with 0.

    transformers 5 assigns three-dimensional rotary positions only to marked tokens; without the
    marks every token silently has the positions of text.
    """
    return (tokens == picture_token).int()
