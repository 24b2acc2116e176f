"""The encoders and the decoder as models of a Triton server: several requests in one call."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from vtryon.types import (
    DecodeStart,
    EncodeTextStart,
    FitMethod,
    ImageFormat,
    Stage,
)
from vtryon_services.engine import fitting, pictures
from vtryon_services.engine.batching.dynamic_batcher import DynamicBatcher
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.latent_encoder import Fitted, VaeEncoder
from vtryon_services.engine.text_encoder import PromptEncoder, PromptInputs
from vtryon_services.triton.contract import MAX_PICTURES, Model
from vtryon_services.triton.requests import (
    ModelRequest,
    ModelSettings,
    as_bytes,
    check_latents,
    refuse,
    respond,
    whole,
)
from vtryon_services.validation.ranges import (
    EncodingRanges,
    PromptRanges,
    check_ranges,
)

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class _Batched(ABC, Generic[I, R]):
    """A model that answers several requests at once; each fails alone."""

    _stage: Stage
    _model: Model

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load."""
        self._beside = ThreadPoolExecutor(4, thread_name_prefix="beside")
        compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._batcher = DynamicBatcher(compute, self._timed, self._kind, sys.maxsize)
        settings = ModelSettings(arguments)
        self._digest = settings.digest
        self._load(settings)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Prepare requests in parallel, compute equal kinds as batches, respond in parallel."""
        prepared = list(self._beside.map(_caught(self._read), requests))
        asked = {
            place: item for place, item in enumerate(prepared) if not isinstance(item, Exception)
        }
        futures = dict(zip(asked, self._batcher.submit(*asked.values()), strict=True))

        def answer(place: int) -> Any:
            if place in futures:
                result, seconds = futures[place].result()
                return self._respond(asked[place], result, torch.tensor([seconds]))
            return prepared[place]

        answers = self._beside.map(_caught(answer), range(len(prepared)))
        return [refuse(one, self._stage) if isinstance(one, Exception) else one for one in answers]

    def _read(self, given: Any) -> I:
        request = ModelRequest(given)
        request.check(self._model, self._digest)
        return self._prepare(request)

    def _timed(self, items: Sequence[I]) -> list[tuple[R, float]]:
        started = time.monotonic()
        results = self._compute(items)
        seconds = time.monotonic() - started
        return [(result, seconds) for result in results]

    @abstractmethod
    def _load(self, settings: ModelSettings) -> None:
        """Make the engine."""

    @abstractmethod
    def _prepare(self, request: ModelRequest) -> I:
        """Read a request."""

    @abstractmethod
    def _kind(self, item: I) -> Hashable:
        """Return the key of requests that can be batched."""

    @abstractmethod
    def _compute(self, items: Sequence[I]) -> Sequence[R]:
        """Compute a batch of one kind."""

    @abstractmethod
    def _respond(self, item: I, result: R, seconds: torch.Tensor) -> Any:
        """Make the response."""


def _caught(work: Callable[..., R]) -> Callable[..., R | Exception]:
    def caught(*given: Any) -> R | Exception:
        try:
            return work(*given)
        except Exception as error:
            return error

    return caught


class LatentEncoderModel(_Batched[Fitted | None, torch.Tensor | None]):
    """A picture to latents; nothing where an ensemble has no picture."""

    _stage = Stage.LATENT_ENCODER
    _model = Model.LATENT_ENCODER

    def _load(self, settings: ModelSettings) -> None:
        self._engine = VaeEncoder.load(settings.checkpoint, settings.placement)
        settings.check_digest(self._engine.digest)

    def _prepare(self, request: ModelRequest) -> Fitted | None:
        picture = request.picture("PICTURE")
        return None if picture is None else self._engine.fit(picture, request.numerics())

    def _kind(self, item: Fitted | None) -> Hashable:
        return None if item is None else item.pixels.shape

    def _compute(self, items: Sequence[Fitted | None]) -> Sequence[torch.Tensor | None]:
        pixels = [item.pixels for item in items if item is not None]
        return self._engine.encode(pixels) if pixels else [None] * len(items)

    def _respond(
        self, item: Fitted | None, result: torch.Tensor | None, seconds: torch.Tensor
    ) -> Any:
        if item is None or result is None:
            return respond()
        fit = item.fit
        sizes = (fit.from_width, fit.from_height, fit.to_width, fit.to_height)
        padded = int(fit.method is FitMethod.PAD)
        described = torch.tensor([*sizes, padded], dtype=torch.int32)
        return respond(LATENTS=result, FIT=described, SECONDS=seconds)


class TextEncoderModel(_Batched[list[PromptInputs], list[torch.Tensor]]):
    """A prompt and its pictures to embeddings."""

    _stage = Stage.TEXT_ENCODER
    _model = Model.TEXT_ENCODER

    def _load(self, settings: ModelSettings) -> None:
        self._engine = PromptEncoder.load(settings.checkpoint, settings.placement)
        settings.check_digest(self._engine.digest)

    def _prepare(self, request: ModelRequest) -> list[PromptInputs]:
        given = [request.picture(f"PICTURE_{number}") for number in range(1, MAX_PICTURES + 1)]
        images = [one for one in given if one is not None]
        negative = request.text("NEGATIVE_PROMPT")
        if negative is None and request.flag("NEGATIVE_GIVEN"):
            negative = ""
        start = EncodeTextStart(prompt=request.text("PROMPT") or "", negative_prompt=negative)
        check_ranges(start, PromptRanges)
        prompts = [one for one in (start.prompt, start.negative_prompt) if one is not None]
        return self._engine.prepare(prompts, images, request.numerics())

    def _kind(self, item: list[PromptInputs]) -> Hashable:
        return None

    def _compute(self, items: Sequence[list[PromptInputs]]) -> Sequence[list[torch.Tensor]]:
        embedded = iter(self._engine.embed([asked for item in items for asked in item]))
        return [[next(embedded).float() for _ in item] for item in items]

    def _respond(
        self, item: list[PromptInputs], result: list[torch.Tensor], seconds: torch.Tensor
    ) -> Any:
        names = ("EMBEDDINGS", "NEGATIVE_EMBEDDINGS")
        return respond(**dict(zip(names, result, strict=False)), SECONDS=seconds)


class DecodeRequest(NamedTuple):
    """A request to the decoder; without latents while an ensemble has none yet."""

    latents: torch.Tensor | None
    format: ImageFormat
    quality: int | None


class DecodingModel(_Batched[DecodeRequest, torch.Tensor | None]):
    """Latents to a picture."""

    _stage = Stage.DECODING
    _model = Model.DECODING

    def _load(self, settings: ModelSettings) -> None:
        self._engine = Decoder.load(settings.checkpoint, settings.placement)
        settings.check_digest(self._engine.digest)

    def _prepare(self, request: ModelRequest) -> DecodeRequest:
        start = DecodeStart(
            format=request.value("format", ImageFormat), quality=request.value("quality", whole)
        )
        check_ranges(start, EncodingRanges)
        latents = request.tensor("LATENTS")
        if latents is not None:
            check_latents("LATENTS", latents, self._engine.max_target_area)
        return DecodeRequest(latents, start.format or ImageFormat.PNG, start.quality)

    def _kind(self, item: DecodeRequest) -> Hashable:
        return None if item.latents is None else item.latents.shape

    def _compute(self, items: Sequence[DecodeRequest]) -> Sequence[torch.Tensor | None]:
        latents = [item.latents for item in items if item.latents is not None]
        return self._engine.decode(latents) if latents else [None] * len(items)

    def _respond(
        self, item: DecodeRequest, result: torch.Tensor | None, seconds: torch.Tensor
    ) -> Any:
        if result is None:
            return respond()
        picture = fitting.to_picture(result)
        data = pictures.encode(picture, item.format, item.quality)
        size = torch.tensor(picture.size, dtype=torch.int32)
        return respond(PICTURE=as_bytes(data), SIZE=size, SECONDS=seconds)
