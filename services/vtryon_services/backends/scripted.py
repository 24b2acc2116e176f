"""No model: results drawn from a digest of the input, in set times.

For tests that are about the mesh, and for measuring the mesh alone. Equal input gives equal output.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace

from PIL import Image

from vtryon.errors import DeadlineError
from vtryon.events import Fit
from vtryon.pictures import Picture
from vtryon.stages import Conditioning, Embeddings
from vtryon.tensors import Tensor, byte_length
from vtryon.types import (
    DataType,
    EncodedImage,
    FitMethod,
    ImageFormat,
    PreviewPolicy,
    Profile,
    TensorSpec,
)
from vtryon.wire.payloads import Buffer
from vtryon_services.backends.protocols import Backend, Latents, OutputOptions, StepDone
from vtryon_services.engine.defaults import DEFAULTS, Defaults
from vtryon_services.engine.loras.choice import LoraFacts
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.pictures import encode
from vtryon_services.engine.plan import QueuePosition, SamplingRequest, is_due
from vtryon_services.rpc.concurrency import ConcurrencyLimiter

CHANNELS = 16
EMBEDDING_WIDTH = 128
MAX_TARGET_AREA = 8192 * 8192
_WIDTH, _HEIGHT = 96, 128
_PREVIEW = 12, 16
_DIGEST = hashlib.sha256(b"vtryon scripted backend").hexdigest()


class ScriptedLatentEncoder(Backend):
    """Gives latents of the reference size."""

    digest = _DIGEST

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def check_pictures(self, count: int) -> None:
        """Accept any number."""

    def check(self, picture: Buffer) -> None:
        """Take any bytes for a picture."""

    async def encode(self, pictures: Sequence[Buffer], numerics: Resolved) -> Sequence[Latents]:
        """Draw latents from each picture's bytes."""
        await asyncio.sleep(self._seconds)
        shape = (CHANNELS, _HEIGHT // 8, _WIDTH // 8)
        fit = Fit("", _WIDTH, _HEIGHT, _WIDTH, _HEIGHT, FitMethod.PAD)
        return [Latents(_draw(shape, [picture]), fit) for picture in pictures]


class ScriptedTextEncoder(Backend):
    """Gives one embedding per word."""

    digest = _DIGEST

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def check_pictures(self, count: int) -> None:
        """Accept any number."""

    def check(self, picture: Buffer) -> None:
        """Take any bytes for a picture."""

    async def encode(
        self,
        prompt: str,
        negative_prompt: str | None,
        pictures: Sequence[Buffer],
        numerics: Resolved,
    ) -> Embeddings:
        """Draw embeddings from the prompt and the pictures' bytes."""
        await asyncio.sleep(self._seconds)
        positive = self._embed(prompt, pictures)
        if negative_prompt is None:
            return Embeddings(positive)
        return Embeddings(positive, self._embed(negative_prompt, pictures))

    def _embed(self, prompt: str, pictures: Sequence[Buffer]) -> Tensor:
        shape = (len(prompt.split()) + 1, EMBEDDING_WIDTH)
        return _draw(shape, [prompt.encode(), *pictures])


class ScriptedSampling(Backend):
    """Gives latents drawn from everything that went in."""

    digest = _DIGEST
    channels = CHANNELS
    width = EMBEDDING_WIDTH
    can_preview = True
    loras: Mapping[str, LoraFacts] = {}
    max_target_area = MAX_TARGET_AREA

    def __init__(self, seconds: float, limiter: ConcurrencyLimiter) -> None:
        self._seconds = seconds
        self._limiter = limiter

    def check_pictures(self, count: int) -> None:
        """Accept any number."""

    def defaults(self, numerics: Resolved) -> Defaults:
        """Four steps, no guidance."""
        return DEFAULTS[Profile.LIGHTNING]

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Evenly from 1 to 0."""
        return tuple(1 - step / steps for step in range(steps + 1))

    def admit(self, request: SamplingRequest) -> ScriptedSlot:
        """Take a place in the queue."""
        self._limiter.check_room(request.tenant)
        return ScriptedSlot(request, self._limiter, self._seconds)

    async def hand_over(self) -> None:
        """Let requests finish: they take negligible time."""


class ScriptedSlot:
    """Sleeps for each step."""

    def __init__(
        self, request: SamplingRequest, limiter: ConcurrencyLimiter, seconds: float
    ) -> None:
        self._request = request
        self._limiter = limiter
        self._seconds = seconds

    async def sample(
        self, given: Conditioning, wanted: OutputOptions
    ) -> AsyncGenerator[QueuePosition | StepDone, None]:
        """Wait for a place, and sleep."""
        plan = self._request.plan
        with self._limiter.enter(self._request.tenant) as permit:
            async for position in permit:
                yield QueuePosition(position)
            for step in range(plan.first_step + 1, plan.steps + 1):
                if time.monotonic() >= self._request.deadline:
                    raise DeadlineError(f"out of time after {step - 1} of {plan.steps} steps")
                await asyncio.sleep(self._seconds)
                last = step == plan.steps
                preview = _preview(step, wanted.previews, last=last)
                kept = last or is_due(step, wanted.resume_every)
                latents = self._latents(given) if kept else None
                yield StepDone(step, self._seconds, preview, latents)

    def leave(self) -> None:
        """Nothing is held before the place."""

    def _latents(self, given: Conditioning) -> Tensor:
        plan = self._request.plan
        whole = replace(given, resume_latents=None)  # resumed, it is the same request
        sources: list[Buffer] = [item.data for item in whole.outgoing()]  # type: ignore[misc]
        return _draw((CHANNELS, *plan.latent_size), [*sources, str(plan.seed).encode()])


class ScriptedDecoding(Backend):
    """Gives a picture of one grey, drawn from the latents."""

    digest = _DIGEST
    channels = CHANNELS
    max_target_area = MAX_TARGET_AREA

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def decode(self, latents: Tensor, format: ImageFormat, quality: int | None) -> Picture:  # noqa: A002
        """Draw the grey from the latents' bytes."""
        await asyncio.sleep(self._seconds)
        grey = (await asyncio.to_thread(_digest, [latents.data]))[0]
        _, height, width = latents.spec.shape
        if format is ImageFormat.PNG:
            return await asyncio.to_thread(_picture, width * 8, height * 8, grey)
        picture = Image.new("L", (width * 8, height * 8), grey)
        data = await asyncio.to_thread(encode, picture, format, quality)
        return Picture(EncodedImage(format, *picture.size), data)


def _draw(shape: tuple[int, ...], sources: Iterable[Buffer]) -> Tensor:
    spec = TensorSpec(DataType.FP32, shape)
    pattern = bytes(byte & 0x3F for byte in _digest(sources))  # small positive floats, never NaN
    length = byte_length(spec)
    return Tensor(spec, (pattern * (length // len(pattern) + 1))[:length])


def _digest(sources: Iterable[Buffer]) -> bytes:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source)
    return digest.digest()


def _preview(step: int, policy: PreviewPolicy | None, *, last: bool) -> Picture | None:
    """Give the preview that the policy has after this step, as the other backends do."""
    if policy is None or not policy.every_steps or not (last or is_due(step, policy.every_steps)):
        return None
    width, height = _PREVIEW
    factor = min(1.0, (policy.max_pixels or width * height) / (width * height)) ** 0.5
    return _picture(max(1, int(width * factor)), max(1, int(height * factor)), step)


def _picture(width: int, height: int, grey: int) -> Picture:
    row = b"\0" + bytes([grey & 0xFF]) * width
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(row * height, 1)
    parts = [_png(b"IHDR", header), _png(b"IDAT", packed), _png(b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return Picture(EncodedImage(ImageFormat.PNG, width, height), data)


def _png(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
