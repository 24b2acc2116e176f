"""The engine in this process.

One thread computes for all stages of the process: torch parallelises an operation over the cores
itself, and concurrent operations would only compete. Pictures are decoded and encoded in worker
threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from typing import TypeVar

import torch

from vtryon.errors import UnavailableError
from vtryon.pictures import Picture
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor
from vtryon.types import DataType, EncodedImage, ImageFormat, Stage, TensorSpec
from vtryon.wire.payloads import Buffer
from vtryon_services.backends.mailbox import Mailbox
from vtryon_services.backends.protocols import Backend, Latents, OutputOptions, StepDone
from vtryon_services.engine import fitting, pictures
from vtryon_services.engine import latents as drawing
from vtryon_services.engine.batching.batcher import BatchedRequest, StepBatcher, Stepped
from vtryon_services.engine.batching.dynamic_batcher import DynamicBatcher
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.defaults import Defaults
from vtryon_services.engine.latent_encoder import Fitted, VaeEncoder
from vtryon_services.engine.loras.choice import LoraFacts
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import QueuePosition, SamplingRequest, is_due
from vtryon_services.engine.sampler import Given, Sampler
from vtryon_services.engine.text_encoder import PromptEncoder, PromptInputs
from vtryon_services.runtime.metrics import Watched, count_dropped_preview
from vtryon_services.runtime.settings import SamplerSettings, StageSettings

R = TypeVar("R")
BATCH = 16  # pictures or prompts at once: a larger batch is no quicker per picture
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


class TorchLatentEncoder(Backend):
    """Encodes pictures with the VAE."""

    check = staticmethod(pictures.check)

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchLatentEncoder:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, VaeEncoder.load))

    def __init__(self, engine: VaeEncoder) -> None:
        self._engine = engine
        self._batcher = DynamicBatcher(_compute, engine.encode, lambda pixels: pixels.shape, BATCH)
        self.check_pictures = engine.family.check_pictures
        self.digest = engine.digest

    async def encode(self, given: Sequence[Buffer], numerics: Resolved) -> Sequence[Latents]:
        """Decode pictures in worker threads; encode on the compute thread, with queued items."""

        def prepare(picture: Buffer) -> Fitted:
            return self._engine.fit(pictures.decode(picture), numerics)

        fitted = await asyncio.gather(*(asyncio.to_thread(prepare, one) for one in given))
        encoded = await _gather(self._batcher.submit(*(pixels for pixels, _ in fitted)))
        return [
            Latents(_to_wire(latents), fit)
            for latents, (_, fit) in zip(encoded, fitted, strict=True)
        ]


class TorchTextEncoder(Backend):
    """Encodes prompts with Qwen2.5-VL."""

    check = staticmethod(pictures.check)

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchTextEncoder:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, PromptEncoder.load))

    def __init__(self, engine: PromptEncoder) -> None:
        self._engine = engine
        self._batcher = DynamicBatcher(_compute, engine.embed, lambda _: None, BATCH)
        self.check_pictures = engine.family.check_pictures
        self.digest = engine.digest

    async def encode(
        self,
        prompt: str,
        negative_prompt: str | None,
        images: Sequence[Buffer],
        numerics: Resolved,
    ) -> Embeddings:
        """Decode pictures in worker threads; encode on the compute thread, with queued items."""
        prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]

        def prepare() -> list[PromptInputs]:
            decoded = [pictures.decode(image) for image in images]
            return self._engine.prepare(prompts, decoded, numerics)

        asked = await asyncio.to_thread(prepare)
        embedded = await _gather(self._batcher.submit(*asked))
        return Embeddings(*map(_to_wire, embedded))


batchers: Watched[StepBatcher] = Watched(lambda _: Stage.SAMPLING.value)
batchers.gauge("vtryon.batch.running", "Requests in the running batch.", attrgetter("running"))
batchers.gauge(
    "vtryon.batch.waiting", "Requests that are admitted and have no slot.", attrgetter("waiting")
)
batchers.counter("vtryon.batch.steps", "Steps of the running batch.", attrgetter("counts.steps"))
batchers.counter("vtryon.batch.rows", "Predictions of the transformer.", attrgetter("counts.rows"))
batchers.counter("vtryon.batch.finished", "Requests finished.", attrgetter("counts.finished"))
batchers.counter(
    "vtryon.batch.cancelled", "Requests cancelled by their client.", attrgetter("counts.cancelled")
)
batchers.counter(
    "vtryon.batch.expired", "Requests that ran out of time.", attrgetter("counts.expired")
)
batchers.counter(
    "vtryon.batch.refused", "Requests rejected at admission.", attrgetter("counts.refused")
)
batchers.counter(
    "vtryon.batch.preempted",
    "Slots lost to a request of higher priority.",
    attrgetter("counts.preempted"),
)
batchers.counter(
    "vtryon.batch.wasted_steps",
    "Steps of requests that never finished.",
    attrgetter("counts.wasted_steps"),
)


class TorchSampling(Backend):
    """Denoises with the MMDiT, all requests in one running batch."""

    @classmethod
    async def load(cls, settings: SamplerSettings) -> TorchSampling:
        """Load the engine that the settings ask for."""
        load = partial(Sampler.load, compiled=settings.compiled, loras=settings.loras)
        engine = await _load_engine(settings, load)
        batcher = StepBatcher(
            engine, _compute, slots=settings.max_concurrency, max_waiting=settings.max_waiting
        )
        return cls(engine, batcher)

    def __init__(self, engine: Sampler, batcher: StepBatcher) -> None:
        self._engine = engine
        self.batcher = batcher
        batchers.add(batcher)
        self.check_pictures = engine.family.check_pictures
        self.digest = engine.digest
        self.channels = engine.channels
        self.width = engine.width
        self.max_target_area = engine.geometry.max_target_area
        self.can_preview = engine.geometry.preview is not None
        self.loras: Mapping[str, LoraFacts] = engine.loras

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        return self._engine.defaults(numerics)

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Noise levels of a request."""
        return self._engine.sigmas(numerics, steps, width, height, strength)

    def admit(self, request: SamplingRequest) -> TorchSlot:
        """Admit a request to the batcher."""
        return TorchSlot(self.batcher.admit(request), self._engine)

    async def hand_over(self) -> None:
        """End every request after the current step."""
        await asyncio.wrap_future(self.batcher.begin_drain())


class TorchSlot:
    """A request in the batcher, as its event loop sees it."""

    def __init__(self, batched: BatchedRequest, engine: Sampler) -> None:
        self._batched = batched
        self._plan = batched.request.plan
        self._engine = engine

    async def sample(
        self, given: Conditioning, wanted: OutputOptions
    ) -> AsyncGenerator[QueuePosition | StepDone, None]:
        """Wait and denoise; a slow reader gets every step, but of the rest the newest alone."""
        mailbox, tensors = Mailbox(), _given(given)
        if self._engine.device.type != "cpu":
            tensors = await asyncio.to_thread(self._engine.move, tensors)
        self._batched.begin(tensors, mailbox)
        last: Stepped | None = None
        try:
            async for item in mailbox:
                if isinstance(item, QueuePosition):
                    yield item
                else:
                    last = item
                    yield await self._describe(item, self._shown(item, wanted, mailbox))
        except UnavailableError:  # handed over
            if last is not None and wanted.resume_every:
                yield StepDone(last.step, 0.0, latents=await self._latents(last))
            raise
        finally:
            self._batched.cancel()

    def leave(self) -> None:
        """Cancel the request."""
        self._batched.cancel()

    def _shown(self, stepped: Stepped, wanted: OutputOptions, mailbox: Mailbox) -> OutputOptions:
        """Show nothing of a step that a newer one has overtaken."""
        if mailbox.is_empty:
            return wanted
        every = wanted.previews.every_steps if wanted.previews else 0
        if is_due(stepped.step, every):
            count_dropped_preview(Stage.SAMPLING.value)
        return OutputOptions()

    async def _describe(self, stepped: Stepped, wanted: OutputOptions) -> StepDone:
        last, policy = stepped.step == self._plan.steps, wanted.previews
        latents, preview = None, None
        if last or is_due(stepped.step, wanted.resume_every):
            latents = await self._latents(stepped)
        if policy and policy.every_steps and (last or is_due(stepped.step, policy.every_steps)):
            preview = await asyncio.to_thread(self._draw, stepped.x0, policy.max_pixels)
        return StepDone(stepped.step, stepped.seconds, preview, latents)

    async def _latents(self, stepped: Stepped) -> Tensor:
        def fetch() -> Tensor:
            return _to_wire(drawing.unpack(stepped.tokens, *self._plan.latent_size).cpu())

        return await asyncio.to_thread(fetch)

    def _draw(self, x0: torch.Tensor, max_pixels: int) -> Picture | None:
        colours = self._engine.geometry.preview
        if colours is None:
            return None
        estimate = drawing.unpack(x0, *self._plan.latent_size)
        small = drawing.preview(estimate, colours, max_pixels)
        declared = EncodedImage(ImageFormat.PNG, *small.size)
        return Picture(declared, pictures.encode(small, ImageFormat.PNG))


class TorchDecoding(Backend):
    """Decodes latents with the VAE."""

    @classmethod
    async def load(cls, settings: StageSettings) -> TorchDecoding:
        """Load the engine that the settings ask for."""
        return cls(await _load_engine(settings, Decoder.load))

    def __init__(self, engine: Decoder) -> None:
        self._batcher = DynamicBatcher(
            _compute, engine.decode, lambda latents: latents.shape, BATCH
        )
        self.digest = engine.digest
        self.channels = engine.channels
        self.max_target_area = engine.max_target_area

    async def decode(self, latents: Tensor, format: ImageFormat, quality: int | None) -> Picture:  # noqa: A002
        """Decode on the compute thread, batched with queued items; encode in a worker thread."""
        [pixels] = await _gather(self._batcher.submit(_from_wire(latents)))

        def draw() -> Picture:
            picture = fitting.to_picture(pixels)
            data = pictures.encode(picture, format, quality)
            return Picture(EncodedImage(format, *picture.size), data)

        return await asyncio.to_thread(draw)


async def _load_engine(settings: StageSettings, load: Callable[[Checkpoint, Placement], R]) -> R:
    """Load one engine on the compute thread, from the checkpoint of the settings.

    Raises:
        SettingsError: no such device, or the checkpoint does not hold.
    """

    def work() -> R:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        checkpoint = Checkpoint.open(settings.checkpoint or SHIPPED_CHECKPOINT)
        placement = Placement.of(settings.device, settings.dtype, keep_fp8=settings.keep_fp8)
        return load(checkpoint, placement)

    return await _run(work)


async def _gather(futures: Sequence[Future[R]]) -> Sequence[R]:
    return await asyncio.gather(*map(asyncio.wrap_future, futures))


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
