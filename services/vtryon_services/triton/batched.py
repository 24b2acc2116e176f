"""The encoders and the decoder as models of a Triton server: several requests in one call."""

from __future__ import annotations

from collections import defaultdict
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


class _Batched(Generic[I, R]):
    """A model that answers several requests at once; each fails alone."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load."""
        self._beside = ThreadPoolExecutor(4, thread_name_prefix="beside")
        self._load(ModelSettings(arguments))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Prepare side by side, compute together what is alike, answer side by side."""
        prepared = list(self._beside.map(_caught(self._prepare), map(Request, requests)))
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for place, item in enumerate(prepared):
            if not isinstance(item, Exception):
                alike[self._kind(item)].append(place)
        answers: list[Any] = [item if isinstance(item, Exception) else None for item in prepared]
        for places in alike.values():
            items: Any = [prepared[place] for place in places]
            self._answer(items, places, answers)
        return [refuse(one) if isinstance(one, Exception) else one for one in answers]

    def _answer(self, items: Sequence[I], places: Sequence[int], answers: list[Any]) -> None:
        try:
            results = self._compute(items)
        except Exception as error:
            if len(items) == 1:
                answers[places[0]] = error
                return
            for item, place in zip(items, places, strict=True):
                self._answer([item], [place], answers)
            return
        finished = self._beside.map(_caught(self._respond), items, results)
        for place, answer in zip(places, finished, strict=True):
            answers[place] = answer

    def _load(self, settings: ModelSettings) -> None:
        raise NotImplementedError

    def _prepare(self, request: Request) -> I:
        raise NotImplementedError

    def _kind(self, item: I) -> Hashable:
        """What goes together."""
        raise NotImplementedError

    def _compute(self, items: Sequence[I]) -> Sequence[R]:
        raise NotImplementedError

    def _respond(self, item: I, result: R) -> Any:
        raise NotImplementedError


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
