"""Interfaces between stages and backends. Tensors are in their wire format."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vtryon.events import Fit
from vtryon.pictures import Picture
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor
from vtryon.types import ImageFormat, PreviewPolicy
from vtryon.wire.payloads import Buffer
from vtryon_services.engine.defaults import Defaults
from vtryon_services.engine.loras.choice import LoraFacts
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.plan import QueuePosition, SamplingRequest


class Latents(NamedTuple):
    """Latents of a picture, and how it was brought to size."""

    tensor: Tensor
    fit: Fit


@dataclass(frozen=True, slots=True)
class StepDone:
    """A denoise step: number of completed steps, duration, and the preview if requested.

    The last one has the latents; earlier ones have them as resume points require.
    """

    step: int
    compute_seconds: float
    preview: Picture | None = None
    latents: Tensor | None = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Intermediate outputs that a request asks for.

    Attributes:
        previews: policy; None for none.
        resume_every: latents after every n-th step, and before a migration; 0: none.
    """

    previews: PreviewPolicy | None = None
    resume_every: int = 0


class Slot(Protocol):
    """A sampling request's admission: it will get its turn."""

    def sample(
        self, given: Conditioning, wanted: OutputOptions
    ) -> AsyncGenerator[QueuePosition | StepDone, None]:
        """Wait and denoise; closing the generator stops before the next step."""
        ...

    def leave(self) -> None:
        """Give the admission up; of no effect once it is used."""
        ...


class Backend(Protocol):
    """Base class of all backends.

    Attributes:
        digest: of its weights and configurations.
    """

    digest: str

    async def is_ready(self) -> bool:
        """Whether it can compute now; the stage's health says so."""
        return True

    async def close(self) -> None:
        """Release all resources."""
        return


class LatentEncoderBackend(Backend, Protocol):
    """Encodes pictures."""

    def check_pictures(self, count: int) -> None:
        """Check the number of pictures at admission; raises `RequestError` if it is wrong."""
        ...

    def check(self, picture: Buffer) -> None:
        """Check a picture's header before queueing; raises `RequestError` if it is invalid."""
        ...

    async def encode(self, pictures: Sequence[Buffer], numerics: Resolved) -> Sequence[Latents]:
        """Encode pictures, together where sizes allow; `RequestError` where one is broken."""
        ...


class TextEncoderBackend(Backend, Protocol):
    """Encodes prompts."""

    def check_pictures(self, count: int) -> None:
        """Check the number of pictures at admission; raises `RequestError` if it is wrong."""
        ...

    def check(self, picture: Buffer) -> None:
        """Check a picture's header before queueing; raises `RequestError` if it is invalid."""
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


class SamplingBackend(Backend, Protocol):
    """Denoises.

    Attributes:
        channels: of latents.
        width: of embeddings.
        max_target_area: pixels of the largest picture.
        can_preview: whether the checkpoint has a preview map.
        loras: LoRAs that requests can choose, by name.
    """

    channels: int
    width: int
    max_target_area: int
    can_preview: bool
    loras: Mapping[str, LoraFacts]

    def check_pictures(self, count: int) -> None:
        """Check the number of pictures at admission; raises `RequestError` if it is wrong."""
        ...

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        ...

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Noise levels of a request."""
        ...

    def admit(self, request: SamplingRequest) -> Slot:
        """Promise a request its turn; `OverloadedError` at once where that can't be kept."""
        ...

    async def hand_over(self) -> None:
        """End every request as UNAVAILABLE, after its last resume point; admit no more."""
        ...


class DecodingBackend(Backend, Protocol):
    """Decodes latents."""

    channels: int
    max_target_area: int

    async def decode(self, latents: Tensor, format: ImageFormat, quality: int | None) -> Picture:  # noqa: A002
        """Decode and encode one picture."""
        ...
