"""The interface of a model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from PIL import Image

from vtryon.events import Fit
from vtryon.types import ResizeFilter
from vtryon_services.engine.geometry import Geometry

if TYPE_CHECKING:  # Triton's clients know a family without torch
    import torch


class Preamble(NamedTuple):
    """The fixed beginning of a prompt's template, whose tokens are dropped from the embeddings."""

    text: str
    tokens: int


class Family(Protocol):
    """All that is particular to the model of a checkpoint.

    Attributes:
        pipeline: the `_class_name` of its `model_index.json`.
        geometry: the checkpoint's, with the family's sizes and defaults where it has none.
        preamble: of the prompt's template.
        picture_token: the token that stands for a patch of a picture.
    """

    pipeline: str
    geometry: Geometry
    preamble: Preamble
    picture_token: str

    def check_pictures(self, count: int) -> None:
        """Check the number of pictures of a request, before anything is computed.

        Raises:
            RequestError: the model can't use so many.
        """
        ...

    def write_prompt(self, prompt: str, pictures: Sequence[int]) -> str:
        """Put a prompt into the model's template, with so many patches per picture."""
        ...

    def picture_inputs(
        self, tokens: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor, picture_token: int
    ) -> dict[str, torch.Tensor]:
        """Name the text encoder's inputs that come from pictures.

        Shapes:
            tokens: (prompts, tokens); pixels: (patches of all pictures, values of a patch);
            grids: (pictures, 3), in patches.
        """
        ...

    def fit_condition(self, picture: Image.Image, resize: ResizeFilter) -> Image.Image:
        """Bring a picture to size for the text encoder.

        Raises:
            RequestError: it is too narrow.
        """
        ...

    def fit_reference(self, picture: Image.Image, resize: ResizeFilter) -> Image.Image:
        """Bring a picture to size for the VAE.

        Raises:
            RequestError: it is too narrow.
        """
        ...

    def with_note(self, fit: Fit, resize: ResizeFilter) -> Fit:
        """Note where the tool that is imitated would have come to another reference size."""
        ...
