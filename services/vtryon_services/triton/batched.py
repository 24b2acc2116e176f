"""The encoders and the decoder as models of a Triton server: several requests in one call."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from vtryon.errors import Reason, RequestError
from vtryon.types import (
    DecodeStart,
    EncodeTextStart,
    FitMethod,
    ImageFormat,
)
from vtryon_services.engine import fitting, pictures
from vtryon_services.engine.batching.merger import Merger
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.latent_encoder import Fitted, LatentEncoder
from vtryon_services.engine.text_encoder import Asked, TextEncoder
from vtryon_services.runtime.ranges import (
    EncodingRanges,
    PromptRanges,
    check_ranges,
)
from vtryon_services.triton.contract import MAX_PICTURES
from vtryon_services.triton.requests import (
    ModelSettings,
    Request,
    as_bytes,
    check_latents,
    refuse,
    respond,
)

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class _Batched(ABC, Generic[I, R]):
    """A model that answers several requests at once; each fails alone."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load."""
        self._beside = ThreadPoolExecutor(4, thread_name_prefix="beside")
        compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._merger = Merger(compute, self._compute, self._kind, sys.maxsize)
        self._load(ModelSettings(arguments))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Prepare side by side, compute together what is alike, answer side by side."""
        prepared = list(self._beside.map(_caught(self._prepare), map(Request, requests)))
        asked = {
            place: item for place, item in enumerate(prepared) if not isinstance(item, Exception)
        }
        futures = dict(zip(asked, self._merger.submit(*asked.values()), strict=True))

        def answer(place: int) -> Any:
            if place in futures:
                return self._respond(asked[place], futures[place].result())
            return prepared[place]

        answers = self._beside.map(_caught(answer), range(len(prepared)))
        return [refuse(one) if isinstance(one, Exception) else one for one in answers]

    @abstractmethod
    def _load(self, settings: ModelSettings) -> None:
        """Make the engine."""

    @abstractmethod
    def _prepare(self, request: Request) -> I:
        """Read a request."""

    @abstractmethod
    def _kind(self, item: I) -> Hashable:
        """Tell what goes together."""

    @abstractmethod
    def _compute(self, items: Sequence[I]) -> Sequence[R]:
        """Compute what is of one kind."""

    @abstractmethod
    def _respond(self, item: I, result: R) -> Any:
        """Make the response."""


def _caught(work: Callable[..., R]) -> Callable[..., R | Exception]:
    def caught(*given: Any) -> R | Exception:
        try:
            return work(*given)
        except Exception as error:
            return error

    return caught


class LatentEncoderModel(_Batched[Fitted, torch.Tensor]):
    """A picture to latents."""

    def _load(self, settings: ModelSettings) -> None:
        self._engine = LatentEncoder.load(settings.checkpoint, settings.placement)

    def _prepare(self, request: Request) -> Fitted:
        picture = request.picture("PICTURE")
        if picture is None:
            raise RequestError("PICTURE is empty", reason=Reason.PAYLOAD_INVALID)
        return self._engine.fit(picture, request.numerics())

    def _kind(self, item: Fitted) -> Hashable:
        return item.pixels.shape

    def _compute(self, items: Sequence[Fitted]) -> Sequence[torch.Tensor]:
        return self._engine.encode([item.pixels for item in items])

    def _respond(self, item: Fitted, result: torch.Tensor) -> Any:
        fit = item.fit
        sizes = (fit.from_width, fit.from_height, fit.to_width, fit.to_height)
        padded = int(fit.method is FitMethod.PAD)
        return respond(LATENTS=result, FIT=torch.tensor([*sizes, padded], dtype=torch.int32))


class TextEncoderModel(_Batched[list[Asked], list[torch.Tensor]]):
    """A prompt and its pictures to embeddings."""

    def _load(self, settings: ModelSettings) -> None:
        self._engine = TextEncoder.load(settings.checkpoint, settings.placement)

    def _prepare(self, request: Request) -> list[Asked]:
        given = [request.picture(f"PICTURE_{number}") for number in range(1, MAX_PICTURES + 1)]
        images = [one for one in given if one is not None]
        start = EncodeTextStart(
            prompt=request.text("PROMPT") or "", negative_prompt=request.text("NEGATIVE_PROMPT")
        )
        check_ranges(start, PromptRanges)
        prompts = [one for one in (start.prompt, start.negative_prompt) if one is not None]
        return self._engine.prepare(prompts, images, request.numerics())

    def _kind(self, item: list[Asked]) -> Hashable:
        return None

    def _compute(self, items: Sequence[list[Asked]]) -> Sequence[list[torch.Tensor]]:
        embedded = iter(self._engine.embed([asked for item in items for asked in item]))
        return [[next(embedded).float() for _ in item] for item in items]

    def _respond(self, item: list[Asked], result: list[torch.Tensor]) -> Any:
        names = ("EMBEDDINGS", "NEGATIVE_EMBEDDINGS")
        return respond(**dict(zip(names, result, strict=False)))


class Wanted(NamedTuple):
    """What the decoder is asked for; no latents where an ensemble has none yet."""

    latents: torch.Tensor | None
    format: ImageFormat
    quality: int | None


class DecodingModel(_Batched[Wanted, torch.Tensor | None]):
    """Latents to a picture."""

    def _load(self, settings: ModelSettings) -> None:
        self._engine = Decoder.load(settings.checkpoint, settings.placement)

    def _prepare(self, request: Request) -> Wanted:
        start = DecodeStart(
            format=request.value("format", ImageFormat), quality=request.value("quality", int)
        )
        check_ranges(start, EncodingRanges)
        latents = request.tensor("LATENTS")
        if latents is not None:
            check_latents("LATENTS", latents, self._engine.max_target_area)
        return Wanted(latents, start.format or ImageFormat.PNG, start.quality)

    def _kind(self, item: Wanted) -> Hashable:
        return None if item.latents is None else item.latents.shape

    def _compute(self, items: Sequence[Wanted]) -> Sequence[torch.Tensor | None]:
        latents = [item.latents for item in items if item.latents is not None]
        return self._engine.decode(latents) if latents else [None] * len(items)

    def _respond(self, item: Wanted, result: torch.Tensor | None) -> Any:
        if result is None:
            return respond()
        picture = fitting.to_picture(result)
        data = pictures.encode(picture, item.format, item.quality)
        return respond(PICTURE=as_bytes(data), SIZE=torch.tensor(picture.size, dtype=torch.int32))
