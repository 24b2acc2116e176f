"""The engine in this process.

One thread computes for all stages of the process: torch spreads an operation over the cores itself,
and two operations at once would only fight for them. Pictures are decoded and encoded beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from vtryon.payloads import Buffer
from vtryon.pictures import Picture
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor
from vtryon.types import DataType, EncodedImage, ImageFormat, PreviewPolicy, TensorSpec
from vtryon_services.backends.protocols import Latents, StepDone
from vtryon_services.engine import latents as drawing
from vtryon_services.engine import pictures
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.geometry import Defaults
from vtryon_services.engine.latent_encoder import LatentEncoder
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import Plan
from vtryon_services.engine.sampler import Given, Sample, Sampler
from vtryon_services.engine.text_encoder import TextEncoder
from vtryon_services.runtime.settings import StageSettings

R = TypeVar("R")
SHIPPED_CHECKPOINT = Path(__file__).parents[1] / "mannequin" / "checkpoint"
_compute = ThreadPoolExecutor(1, thread_name_prefix="vtryon-compute")
_DTYPES = {
    DataType.FP32: torch.float32,
    DataType.FP16: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.INT64: torch.int64,
    DataType.UINT8: torch.uint8,
    DataType.BOOL: torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TorchLatentEncoder:
    """Encodes pictures with the VAE."""

    check = staticmethod(pictures.check)

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchLatentEncoder:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, LatentEncoder.load))

    def __init__(self, engine: LatentEncoder) -> None:
        self._engine = engine
        self.digest = engine.digest

    async def encode(self, picture: Buffer, numerics: Resolved) -> Latents:
        """Decode beside, encode on the compute thread."""
        decoded = await asyncio.to_thread(pictures.decode, picture)
        latents, fit = await _run(lambda: self._engine.encode(decoded, numerics))
        return Latents(_to_wire(latents), fit)


class TorchTextEncoder:
    """Encodes prompts with Qwen2.5-VL."""

    check = staticmethod(pictures.check)

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchTextEncoder:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, TextEncoder.load))

    def __init__(self, engine: TextEncoder) -> None:
        self._engine = engine
        self.digest = engine.digest

    async def encode(
        self,
        prompt: str,
        negative_prompt: str | None,
        images: Sequence[Buffer],
        numerics: Resolved,
    ) -> Embeddings:
        """Decode beside, encode on the compute thread."""
        decoded = [await asyncio.to_thread(pictures.decode, image) for image in images]
        positive, negative = await _run(
            lambda: self._engine.encode(prompt, negative_prompt, decoded, numerics)
        )
        return Embeddings(_to_wire(positive), None if negative is None else _to_wire(negative))


class TorchSampling:
    """Denoises with the MMDiT, one step of one request at a time."""

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchSampling:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, Sampler.load))

    def __init__(self, engine: Sampler) -> None:
        self._engine = engine
        self.digest = engine.digest
        self.channels = engine.channels
        self.width = engine.width
        self.max_target_area = engine.geometry.max_target_area

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        return self._engine.defaults(numerics)

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Noise levels of a request."""
        return self._engine.sigmas(numerics, steps, width, height, strength)

    async def sample(
        self, plan: Plan, given: Conditioning, previews: PreviewPolicy | None
    ) -> AsyncGenerator[StepDone, None]:
        """Denoise; closing the generator stops before the next step."""
        sample = await _run(lambda: self._engine.begin(plan, _given(given)))
        while not sample.finished:
            started = time.monotonic()
            await _run(lambda: self._engine.advance(sample))
            seconds = time.monotonic() - started
            preview = await self._preview(sample, previews)
            latents = _to_wire(sample.latents()) if sample.finished else None
            yield StepDone(sample.step, seconds, preview, latents)

    async def _preview(self, sample: Sample, policy: PreviewPolicy | None) -> Picture | None:
        colours = self._engine.geometry.preview
        if policy is None or colours is None or not policy.every_steps:
            return None
        if sample.step % policy.every_steps and not sample.finished:
            return None
        x0 = sample.estimate()
        assert x0 is not None

        def draw() -> Picture:
            small = drawing.preview(x0, colours, policy.max_pixels)
            declared = EncodedImage(ImageFormat.PNG, *small.size)
            return Picture(declared, pictures.encode(small, ImageFormat.PNG))

        return await asyncio.to_thread(draw)


class TorchDecoding:
    """Decodes latents with the VAE."""

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchDecoding:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, Decoder.load))

    def __init__(self, engine: Decoder) -> None:
        self._engine = engine
        self.digest = engine.digest
        self.channels = engine.channels
        self.max_target_area = engine.max_target_area

    async def decode(self, latents: Tensor, format: ImageFormat, quality: int | None) -> Picture:  # noqa: A002
        """Decode on the compute thread, encode beside it."""
        picture = await _run(lambda: self._engine.decode(_from_wire(latents)))
        data = await asyncio.to_thread(pictures.encode, picture, format, quality)
        return Picture(EncodedImage(format, *picture.size), data)


async def _load_engine(settings: StageSettings, load: Callable[[Checkpoint, Placement], R]) -> R:
    """Load one engine on the compute thread, from the checkpoint of the settings.

    Raises:
        SettingsError: no such device, or the checkpoint does not hold.
    """

    def work() -> R:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        checkpoint = Checkpoint.open(settings.checkpoint or SHIPPED_CHECKPOINT)
        return load(checkpoint, Placement.of(settings.device, settings.dtype))

    return await _run(work)


async def _run(work: Callable[[], R]) -> R:
    return await asyncio.get_running_loop().run_in_executor(_compute, work)


def _given(given: Conditioning) -> Given:
    negative, noise, resume = (
        None if tensor is None else _from_wire(tensor)
        for tensor in (given.embeddings.negative, given.noise, given.resume_latents)
    )
    return Given(
        positive=_from_wire(given.embeddings.positive),
        negative=negative,
        references=[_from_wire(reference) for reference in given.references],
        noise=noise,
        resume=resume,
    )


def _from_wire(tensor: Tensor) -> torch.Tensor:
    assert tensor.spec.data_type is not None
    writable = bytearray(tensor.data) if memoryview(tensor.data).readonly else tensor.data
    flat = torch.frombuffer(writable, dtype=_DTYPES[tensor.spec.data_type])
    return flat.view(tensor.spec.shape)


def _to_wire(tensor: torch.Tensor) -> Tensor:
    plain = tensor.contiguous()
    data = plain.view(torch.uint8).numpy().data.cast("B")
    return Tensor(TensorSpec(_NAMES[plain.dtype], tuple(plain.shape)), data)
