"""The engine on a Triton server: backends that send requests to its models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol, Self

import numpy as np
from google.protobuf import json_format

from vtryon.errors import SettingsError
from vtryon.events import Fit
from vtryon.pictures import Picture
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor
from vtryon.types import EncodedImage, FitMethod, ImageFormat
from vtryon.wire.payloads import Buffer
from vtryon_services.backends.protocols import Backend, Latents, OutputOptions, StepDone
from vtryon_services.engine import pictures
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.families.table import find_family
from vtryon_services.engine.flow_match import FlowMatchSchedule
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.loras.choice import LoraFacts
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.plan import QueuePosition, SamplingRequest
from vtryon_services.engine.schedule import Scheduled
from vtryon_services.runtime.settings import StageSettings
from vtryon_services.triton.client import TritonPool
from vtryon_services.triton.contract import PREVIEWS, Model, option_parameters

_START_SECONDS = 60.0  # a server that starts beside us gets so long


class TritonSettings(Protocol):
    """Triton settings of stages and pipeline."""

    @property
    def triton_url(self) -> str:
        """Of the servers."""
        ...

    @property
    def triton_shared_memory_bytes(self) -> int:
        """From how many bytes on inputs go through shared memory; 0: never."""
        ...


async def find(model: Model, settings: TritonSettings) -> TritonPool:
    """Connect to the servers of a model, and wait for it if it is being loaded.

    Raises:
        SettingsError: no server has it.
    """
    pool = TritonPool.of(settings.triton_url, settings.triton_shared_memory_bytes)
    until = time.monotonic() + _START_SECONDS
    while not await pool.is_ready(model):
        if time.monotonic() > until:
            await pool.close()
            raise SettingsError(
                f"no model {model} is ready at {settings.triton_url}: "
                "`vtryon models export-triton` makes one, `vtryon triton up` serves it"
            )
        await asyncio.sleep(0.2)
    return pool


async def agreed(pool: TritonPool, models: Sequence[Model]) -> dict[Model, dict[str, str]]:
    """Return the servers' export metadata of models; closes the pool if they differ.

    Raises:
        SettingsError: the servers have different models.
    """
    try:
        return await pool.agree(models)
    except SettingsError:
        await pool.close()
        raise


class _TritonBackend(Backend):
    """One model, as its export described it."""

    model: Model

    @classmethod
    async def load(cls, settings: StageSettings) -> Self:
        """Connect to the servers, and read what the export wrote.

        Raises:
            SettingsError: no server has the model.
        """
        pool = await find(cls.model, settings)
        return cls(pool, (await agreed(pool, [cls.model]))[cls.model])

    def __init__(self, pool: TritonPool, described: dict[str, str]) -> None:
        self._pool = pool
        self.digest = described["digest"]
        self.channels = int(described["channels"])
        self.width = int(described["width"])
        self.family = described_family(described)
        self.geometry = self.family.geometry
        self.check_pictures = self.family.check_pictures
        self.max_target_area = self.geometry.max_target_area

    async def is_ready(self) -> bool:
        """Whether a server can serve the model now."""
        return await self._pool.is_ready(self.model)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


class TritonLatentEncoder(_TritonBackend):
    """Encodes pictures with the model `latent_encoder`."""

    model = Model.LATENT_ENCODER
    check = staticmethod(pictures.check)

    async def encode(self, given: Sequence[Buffer], numerics: Resolved) -> Sequence[Latents]:
        """Request each picture; the server batches them."""
        return await asyncio.gather(*(self._encode(picture, numerics) for picture in given))

    async def _encode(self, picture: Buffer, numerics: Resolved) -> Latents:
        found = await self._pool.infer(
            self.model, {"PICTURE": as_array(picture), "RESIZE": resize_array(numerics)}
        )
        fit = read_fit(found["FIT"], self.family, numerics)
        return Latents(Tensor.from_numpy(found["LATENTS"]), fit)


class TritonTextEncoder(_TritonBackend):
    """Encodes prompts with the model `text_encoder`."""

    model = Model.TEXT_ENCODER
    check = staticmethod(pictures.check)

    async def encode(
        self,
        prompt: str,
        negative_prompt: str | None,
        images: Sequence[Buffer],
        numerics: Resolved,
    ) -> Embeddings:
        """Ask for both prompts at once."""
        tensors = {"PROMPT": as_array(prompt.encode()), "RESIZE": resize_array(numerics)}
        if negative_prompt is not None:
            tensors["NEGATIVE_PROMPT"] = as_array(negative_prompt.encode())
            tensors["NEGATIVE_GIVEN"] = as_array(b"\1")
        tensors |= {f"PICTURE_{number}": as_array(image) for number, image in enumerate(images, 1)}
        found = await self._pool.infer(self.model, tensors)
        negative = found.get("NEGATIVE_EMBEDDINGS")
        return Embeddings(
            Tensor.from_numpy(found["EMBEDDINGS"]),
            None if negative is None else Tensor.from_numpy(negative),
        )


class TritonSampling(_TritonBackend, Scheduled):
    """Denoises with the model `sampling`; the step batcher runs on the server."""

    model = Model.SAMPLING

    def __init__(self, pool: TritonPool, described: dict[str, str]) -> None:
        super().__init__(pool, described)
        self.can_preview = can_preview(described)
        self._schedule = FlowMatchSchedule.from_config(json.loads(described["scheduler"]))
        self.loras: Mapping[str, LoraFacts] = {}

    def admit(self, request: SamplingRequest) -> TritonSlot:
        """Take a request on; the model admits or refuses it when it gets the tensors."""
        return TritonSlot(self._pool, request)

    async def hand_over(self) -> None:
        """Let requests finish: the server that steps them is not going away."""


class TritonSlot:
    """One stream of the model `sampling`."""

    def __init__(self, pool: TritonPool, request: SamplingRequest) -> None:
        self._pool = pool
        self._request = request

    async def sample(
        self, given: Conditioning, wanted: OutputOptions
    ) -> AsyncGenerator[QueuePosition | StepDone, None]:
        """Send the tensors and yield the responses."""
        answers = self._pool.stream(
            Model.SAMPLING, self._tensors(given), self._parameters(wanted), self._remaining
        )
        async with aclosing(answers):
            async for found in answers:
                seconds = float(found["SECONDS"][0])
                if "POSITION" in found:
                    yield QueuePosition(int(found["POSITION"][0]), seconds or None)
                else:
                    yield _step(found, seconds)

    def leave(self) -> None:
        """Leave nothing: the stream that holds the slot is cancelled when it is closed."""

    @property
    def _remaining(self) -> float:
        return max(0.001, self._request.deadline - time.monotonic())

    def _tensors(self, given: Conditioning) -> dict[str, np.ndarray]:
        tensors = {"EMBEDDINGS": given.embeddings.positive}
        if given.embeddings.negative is not None and self._request.guided:
            tensors["NEGATIVE_EMBEDDINGS"] = given.embeddings.negative
        tensors |= {f"REFERENCE_{number}": one for number, one in enumerate(given.references, 1)}
        others = {"NOISE": given.noise, "RESUME": given.resume_latents}
        tensors |= {name: one for name, one in others.items() if one is not None}
        return {
            name: one.to_numpy().astype(np.float32, copy=False) for name, one in tensors.items()
        }

    def _parameters(self, wanted: OutputOptions) -> dict[str, str | int | float]:
        request, plan = self._request, self._request.plan
        numerics = plan.numerics.to_wire().to_proto()
        parameters: dict[str, str | int | float] = {
            "width": plan.width,
            "height": plan.height,
            **option_parameters(plan.options),
            "numerics": json_format.MessageToJson(numerics, indent=None),
            "urgency": request.priority.value,  # Triton keeps the name "priority" to itself
            "tenant": request.tenant,
            "timeout_seconds": self._remaining,
            "resume_every": wanted.resume_every,
        }
        if plan.first_step:
            parameters["resume_step"] = plan.first_step
        if wanted.previews:
            parameters["preview_every"] = wanted.previews.every_steps
            parameters["preview_max_pixels"] = wanted.previews.max_pixels
        return parameters


class TritonDecoding(_TritonBackend):
    """Decodes latents with the model `decoding`."""

    model = Model.DECODING

    async def decode(self, latents: Tensor, format: ImageFormat, quality: int | None) -> Picture:  # noqa: A002
        """Ask for the encoded picture."""
        parameters: dict[str, str | int | float] = {"format": format.value}
        if quality is not None:
            parameters["quality"] = quality
        found = await self._pool.infer(self.model, {"LATENTS": latents.to_numpy()}, parameters)
        width, height = found["SIZE"].tolist()
        return Picture(EncodedImage(format, width, height), found["PICTURE"].tobytes())


def can_preview(described: Mapping[str, str]) -> bool:
    """Return whether the exported sampler can make previews, by its metadata."""
    return described.get(PREVIEWS) != "0"


def described_family(described: Mapping[str, str]) -> Family:
    """Make the family of an exported checkpoint, by its metadata."""
    if "family" not in described:
        raise SettingsError(
            "the models of the Triton server are of an older export, without their family: export "
            "them again, by `vtryon models export-triton`"
        )
    geometry = Geometry.model_validate_json(described["geometry"])
    return find_family(described["family"])(geometry)


def read_fit(found: np.ndarray, family: Family, numerics: Resolved) -> Fit:
    """Read how a picture was brought to size."""
    from_width, from_height, to_width, to_height, padded = found.tolist()
    method = FitMethod.PAD if padded else FitMethod.AREA
    fit = Fit("", from_width, from_height, to_width, to_height, method)
    return family.with_note(fit, numerics.resize)


def read_preview(found: Mapping[str, np.ndarray]) -> Picture | None:
    """Read the preview of a step, if there is one."""
    if "PREVIEW" not in found:
        return None
    declared = EncodedImage(ImageFormat.PNG, *found["PREVIEW_SIZE"].tolist())
    return Picture(declared, found["PREVIEW"].tobytes())


def _step(found: dict[str, np.ndarray], seconds: float) -> StepDone:
    latents = found.get("LATENTS", found.get("RESUME_LATENTS"))
    return StepDone(
        int(found["STEP"][0]),
        seconds,
        read_preview(found),
        None if latents is None else Tensor.from_numpy(latents),
    )


def as_array(data: Buffer) -> np.ndarray:
    """Give bytes as UINT8, without copying."""
    return np.frombuffer(data, np.uint8)


def resize_array(numerics: Resolved) -> np.ndarray:
    """Give the input RESIZE of the encoders."""
    return as_array(numerics.resize.value.encode())
