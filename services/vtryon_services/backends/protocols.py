"""What a stage asks of its backend. Tensors are as they cross the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vtryon.events import Fit
from vtryon.payloads import Buffer
from vtryon.pictures import Picture
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor
from vtryon.types import ImageFormat, PreviewPolicy
from vtryon_services.engine.geometry import Defaults
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.plan import Plan


class Latents(NamedTuple):
    """Latents of a picture, and how it was brought to size."""

    tensor: Tensor
    fit: Fit


@dataclass(frozen=True, slots=True)
class StepDone:
    """A denoise step: how many are done, what it took, and the preview if one was wanted.

    The last one carries the latents.
    """

    step: int
    compute_seconds: float
    preview: Picture | None = None
    latents: Tensor | None = None


class LatentEncoderBackend(Protocol):
    """Encodes pictures."""

    digest: str

    def check(self, picture: Buffer) -> None:
        """Look at a picture's header, before it waits; `RequestError` where it is none."""
        ...

    async def encode(self, picture: Buffer, numerics: Resolved) -> Latents:
        """Encode one picture; `RequestError` where it can't be decoded."""
        ...


class TextEncoderBackend(Protocol):
    """Encodes prompts."""

    digest: str

    def check(self, picture: Buffer) -> None:
        """Look at a picture's header, before it waits; `RequestError` where it is none."""
        ...

    async def encode(
        self,
        prompt: str,
        negative_prompt: str | None,
        pictures: Sequence[Buffer],
        numerics: Resolved,
    ) -> Embeddings:
        """Encode both prompts with the same pictures."""
        ...


class SamplingBackend(Protocol):
    """Denoises.

    Attributes:
        channels: of latents.
        width: of embeddings.
        max_target_area: pixels of the largest picture.
    """

    digest: str
    channels: int
    width: int
    max_target_area: int

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        ...

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Noise levels of a request."""
        ...

    def sample(
        self, plan: Plan, given: Conditioning, previews: PreviewPolicy | None
    ) -> AsyncGenerator[StepDone, None]:
        """Denoise; closing the generator stops before the next step."""
        ...


class DecodingBackend(Protocol):
    """Decodes latents."""

    digest: str
    channels: int
    max_target_area: int

    async def decode(self, latents: Tensor, format: ImageFormat, quality: int | None) -> Picture:  # noqa: A002
        """Decode and encode one picture."""
        ...
