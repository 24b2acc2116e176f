"""Clients of the single stages, for running and looking at each alone."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vtryon.arguments import argument_error, check_kind, check_timeout, choice, sequence
from vtryon.errors import ProtocolError
from vtryon.messages import request_message
from vtryon.pictures import Picture, read_picture
from vtryon.run import Run, StreamedResult
from vtryon.tensors import Tensor, check_tensor
from vtryon.threads import run_on_bytes
from vtryon.types import (
    DecodeStart,
    EncodeLatentsStart,
    EncodeTextStart,
    ImageFormat,
    Numerics,
    PayloadKind,
    SampleStart,
    Start,
)
from vtryon.wire.channel import Channel
from vtryon.wire.grammar import DEFAULT_CHUNK_BYTES
from vtryon.wire.payloads import Outgoing, outgoing_image
from vtryon.wire.stream import DECODE, ENCODE_LATENTS, ENCODE_TEXT, SAMPLE, StreamCall, StreamMethod

if TYPE_CHECKING:
    from vtryon.pictures import PictureSource

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Output of the text encoder: (tokens, width) of the prompt, and of the negative prompt."""

    positive: Tensor
    negative: Tensor | None = None

    def __post_init__(self) -> None:
        """Reject values that are not tensors."""
        check_tensor("positive", self.positive)
        if self.negative is not None:
            check_tensor("negative", self.negative)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Input of the sampler.

    Attributes:
        embeddings: of the prompt and, for guidance, of the negative prompt.
        references: latents of the pictures, (channels, height / 8, width / 8), the person first.
        noise: the starting noise in the target's shape, in place of a seed.
        resume_latents: latents of a resume point, with `SampleStart.resume`.
    """

    embeddings: Embeddings
    references: Sequence[Tensor]
    noise: Tensor | None = None
    resume_latents: Tensor | None = None

    def __post_init__(self) -> None:
        """Reject values that are not embeddings or tensors."""
        check_kind("embeddings", self.embeddings, Embeddings, "Embeddings")
        for number, one in enumerate(sequence("references", self.references, "tensors")):
            check_tensor(f"references[{number}]", one)
        for name in ("noise", "resume_latents"):
            if (given := getattr(self, name)) is not None:
                check_tensor(name, given)

    def outgoing(self) -> list[Outgoing]:
        """Declare everything that is there, in the order of sampling.proto."""
        tensors = [
            (PayloadKind.EMBEDDINGS, self.embeddings.positive),
            (PayloadKind.NEGATIVE_EMBEDDINGS, self.embeddings.negative),
            *((PayloadKind.REFERENCE_LATENTS, reference) for reference in self.references),
            (PayloadKind.NOISE, self.noise),
            (PayloadKind.RESUME_LATENTS, self.resume_latents),
        ]
        return [tensor.outgoing(kind) for kind, tensor in tensors if tensor is not None]


class _StageClient:
    method: StreamMethod

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    def _run(
        self,
        start: Start,
        load: Callable[[], Awaitable[list[Outgoing]]],
        timeout_seconds: float | None,
        finish: Callable[[StreamedResult], T],
    ) -> Run[T]:
        check_timeout(timeout_seconds)
        request_message(start)  # refuses now what could not be sent

        async def open_call(seconds: float | None) -> StreamCall:
            return self.open(start, await load(), timeout_seconds=seconds)

        return Run(lambda: self.channel.attempts(timeout_seconds), open_call, finish)

    def open(
        self,
        start: Start,
        outgoing: Sequence[Outgoing],
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        tenant: str = "",
        content_digest: str = "",
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> StreamCall:
        """Make the bare call: events as they come, chunks among them."""
        return StreamCall(
            self.channel,
            self.method,
            start,
            outgoing,
            timeout_seconds=timeout_seconds,
            request_id=request_id,
            tenant=tenant,
            content_digest=content_digest,
            chunk_bytes=chunk_bytes,
        )


class LatentEncoder(_StageClient):
    """Pictures to latents."""

    method = ENCODE_LATENTS

    def encode(
        self,
        pictures: Sequence[PictureSource],
        *,
        numerics: Numerics | None = None,
        timeout_seconds: float | None = None,
    ) -> Run[list[Tensor]]:
        """Encode pictures; those that come to the same size go through the VAE together.

        Shapes:
            result: (channels, height / 8, width / 8) for each picture, FP32, normalised.

        Raises:
            RequestError: at once, for an argument that can't be sent.
        """
        images = _images(pictures)
        return self._run(
            EncodeLatentsStart(numerics=numerics),
            lambda: image_payloads(images),
            timeout_seconds,
            _latents,
        )


class TextEncoder(_StageClient):
    """A prompt and its pictures to embeddings."""

    method = ENCODE_TEXT

    def encode(
        self,
        prompt: str,
        pictures: Sequence[PictureSource],
        *,
        negative_prompt: str | None = None,
        numerics: Numerics | None = None,
        timeout_seconds: float | None = None,
    ) -> Run[Embeddings]:
        """Encode a prompt with the pictures it speaks of.

        Shapes:
            result: (tokens, width) each, the checkpoint's element type.

        Raises:
            RequestError: at once, for an argument that can't be sent.
        """
        images = _images(pictures)
        start = EncodeTextStart(numerics=numerics, prompt=prompt, negative_prompt=negative_prompt)
        return self._run(start, lambda: image_payloads(images), timeout_seconds, _embeddings)


class Sampling(_StageClient):
    """Noise to latents."""

    method = SAMPLE

    def sample(
        self,
        start: SampleStart,
        given: Conditioning,
        *,
        timeout_seconds: float | None = None,
    ) -> Run[Tensor]:
        """Denoise, one event per step; leaving the run frees the slot before the next step.

        Shapes:
            result: (channels, start.height / 8, start.width / 8), FP32.

        Raises:
            RequestError: at once, for an argument that can't be sent.
        """
        check_kind("start", start, SampleStart, "a SampleStart")
        check_kind("given", given, Conditioning, "a Conditioning")

        async def load() -> list[Outgoing]:
            return given.outgoing()

        return self._run(start, load, timeout_seconds, lambda received: _latents(received)[0])


class Decoding(_StageClient):
    """Latents to a picture."""

    method = DECODE

    def decode(
        self,
        latents: Tensor,
        *,
        format: ImageFormat | str | None = None,  # noqa: A002
        quality: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Run[Picture]:
        """Decode latents.

        Shapes:
            latents: (channels, height / 8, width / 8), FP32.

        Raises:
            RequestError: at once, for an argument that can't be sent.
        """
        check_tensor("latents", latents)
        start = DecodeStart(format=choice("format", ImageFormat, format), quality=quality)

        async def load() -> list[Outgoing]:
            return [latents.outgoing(PayloadKind.LATENTS)]

        return self._run(start, load, timeout_seconds, StreamedResult.picture)


async def image_payloads(
    pictures: Sequence[tuple[PayloadKind, PictureSource, str]],
) -> list[Outgoing]:
    """Read pictures and declare them, without blocking the event loop.

    Args:
        pictures: kind, picture, and name for error messages, of each.

    Raises:
        RequestError: a picture can't be read.
    """
    outgoing = []
    for kind, source, name in pictures:
        size = len(source) if isinstance(source, bytes) else math.inf  # a path, to be decoded, …
        data = await run_on_bytes(size, read_picture, source, name)
        outgoing.append(outgoing_image(kind, data))
    return outgoing


def _images(pictures: Any) -> list[tuple[PayloadKind, PictureSource, str]]:
    single = (str, bytes, bytearray, memoryview)
    if not isinstance(pictures, Sequence) or isinstance(pictures, single):
        raise argument_error(
            "pictures",
            f"takes a list of pictures, not {type(pictures).__name__}; write [picture] for one",
        )
    return [
        (PayloadKind.IMAGE, picture, f"pictures[{number}]")
        for number, picture in enumerate(pictures)
    ]


def _tensors(received: StreamedResult, kind: PayloadKind) -> list[Tensor]:
    found = [
        Tensor(payload.tensor, buffer)
        for payload, buffer in zip(received.payloads, received.buffers, strict=True)
        if payload.kind is kind and payload.tensor is not None
    ]
    if not found:
        raise ProtocolError(f"the output has no {kind.value}")
    return found


def _latents(received: StreamedResult) -> list[Tensor]:
    return _tensors(received, PayloadKind.LATENTS)


def _embeddings(received: StreamedResult) -> Embeddings:
    [positive] = _tensors(received, PayloadKind.EMBEDDINGS)
    if len(received.payloads) == 1:
        return Embeddings(positive)
    [negative] = _tensors(received, PayloadKind.NEGATIVE_EMBEDDINGS)
    return Embeddings(positive, negative)
