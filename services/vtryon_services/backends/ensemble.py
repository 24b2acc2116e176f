"""A whole try-on as one request of the model `tryon`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

import numpy as np
from google.protobuf import json_format

from vtryon.errors import SettingsError, StageError
from vtryon.events import Fit
from vtryon.pictures import Picture
from vtryon.types import EncodedImage, ImageFormat, TryOnOptions
from vtryon.wire.payloads import Buffer
from vtryon_services.backends.triton import (
    TritonSettings,
    agreed,
    as_array,
    can_preview,
    described_family,
    find,
    read_fit,
    read_preview,
    resize_array,
)
from vtryon_services.engine.defaults import Guidance
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.plan import QueuePosition
from vtryon_services.triton.client import TritonPool
from vtryon_services.triton.contract import (
    GARMENTS,
    STAGE_MODELS,
    Model,
    option_parameters,
    stage_of,
)

_EMPTY = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Progress:
    """A response of the ensemble, after a step.

    Attributes:
        sigma: the noise level reached.
        decoding_seconds: with the last step; otherwise 0.
        fits: resizes of the pictures; only with the first step.
        picture: the result, with the last step.
    """

    step: int
    steps: int
    sigma: float
    compute_seconds: float
    decoding_seconds: float
    preview: Picture | None
    fits: tuple[Fit, ...]
    picture: Picture | None


class TritonTryOn:
    """Runs the ensemble `tryon`.

    Attributes:
        digests: of the model of each stage.
        can_preview: whether the checkpoint has a preview map.
        check_pictures: checks the number of pictures of a request; raises `RequestError`.
    """

    def __init__(self, pool: TritonPool, described: Mapping[Model, Mapping[str, str]]) -> None:
        self._pool = pool
        self._family = described_family(described[Model.LATENT_ENCODER])
        self.check_pictures = self._family.check_pictures
        self.can_preview = can_preview(described[Model.SAMPLING])
        self.digests = {stage_of(model): one["digest"] for model, one in described.items()}

    @classmethod
    async def connect(cls, settings: TritonSettings, max_garments: int) -> Self:
        """Find the model, and wait for it while it is loading.

        Raises:
            SettingsError: no server has it, it accepts fewer garments, or the servers differ.
        """
        if max_garments > len(GARMENTS):
            raise SettingsError(
                f"max_garments is {max_garments}; the ensemble takes {len(GARMENTS)}"
            )
        pool = await find(Model.TRYON, settings)
        return cls(pool, await agreed(pool, STAGE_MODELS))

    def guidance(self, options: TryOnOptions) -> Guidance:
        """Return the guidance of a request."""
        profile = resolve(options.numerics).profile
        return self._family.geometry.defaults_of(profile).guidance(options)

    async def is_ready(self) -> bool:
        """Whether a server can serve the model now."""
        return await self._pool.is_ready(Model.TRYON)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def draw(
        self,
        options: TryOnOptions,
        pictures: Sequence[Buffer],
        *,
        timeout_seconds: float,
        tenant: str,
    ) -> AsyncGenerator[QueuePosition | Progress, None]:
        """Request a try-on, and yield its progress; closing the generator cancels it on the server.

        The first picture is the person.

        Raises:
            VtryonError: it failed; the metadata names the stage.
        """
        key = uuid.uuid4().hex
        answers = self._pool.stream(
            Model.TRYON,
            _tensors(options, pictures),
            _parameters(options)
            | {"key": key, "tenant": tenant, "timeout_seconds": timeout_seconds},
            timeout_seconds,
            # An ensemble's cancel does not reach the sampler.
            at_leaving=(Model.SAMPLING, {"CANCEL": as_array(key.encode())}),
        )
        async with aclosing(answers):
            async for found in answers:
                yield _read(found, options, self._family)


def _tensors(options: TryOnOptions, pictures: Sequence[Buffer]) -> dict[str, np.ndarray]:
    person, *garments = map(as_array, pictures)
    named = dict(zip(GARMENTS, garments, strict=False))
    return {
        "PERSON": person,
        **{name: named.get(name, _EMPTY) for name in GARMENTS},
        "PROMPT": as_array(options.prompt.encode()),
        "NEGATIVE_PROMPT": as_array((options.negative_prompt or "").encode()),
        "NEGATIVE_GIVEN": as_array(b"\0" if options.negative_prompt is None else b"\1"),
        "RESIZE": resize_array(resolve(options.numerics)),
    }


def _parameters(options: TryOnOptions) -> dict[str, str | int | float]:
    numerics = resolve(options.numerics).to_wire().to_proto()
    wanted = {
        "width": options.width,
        "height": options.height,
        **option_parameters(options),
        "numerics": json_format.MessageToJson(numerics, indent=None),
        "urgency": options.priority.value if options.priority else None,
        "preview_every": options.previews.every_steps if options.previews else None,
        "preview_max_pixels": options.previews.max_pixels if options.previews else None,
        "format": options.format.value if options.format else None,
        "quality": options.quality,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _read(
    found: dict[str, np.ndarray], options: TryOnOptions, family: Family
) -> QueuePosition | Progress:
    numerics = resolve(options.numerics)
    seconds = float(found["SECONDS"][0])
    if "POSITION" in found:
        return QueuePosition(int(found["POSITION"][0]), seconds or None)
    step, steps = int(found["STEP"][0]), int(found["STEPS"][0])
    picture = None
    if step == steps:
        if "PICTURE" not in found:
            raise StageError("the ensemble ended without a picture")
        declared = EncodedImage(options.format or ImageFormat.PNG, *found["SIZE"].tolist())
        picture = Picture(declared, found["PICTURE"].tobytes())
    fits = [found[name] for name in sorted(found) if name.startswith("FIT_")]
    return Progress(
        step,
        steps,
        float(found["SIGMA"][0]),
        seconds,
        float(found["DECODING_SECONDS"][0]) if picture else 0.0,
        read_preview(found),
        tuple(read_fit(one, family, numerics) for one in fits),
        picture,
    )
