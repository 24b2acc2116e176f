"""Encode a prompt with its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from vtryon.errors import Reason, RequestError
from vtryon.events import Event, Finished, Queued
from vtryon.stages import Embeddings
from vtryon.types import EncodeTextStart, PayloadKind, Stage
from vtryon.wire.payloads import Outgoing
from vtryon_services.backends.protocols import TextEncoderBackend
from vtryon_services.engine.numerics import resolve
from vtryon_services.graph import numerics_for, unused_numerics
from vtryon_services.rpc.call import Call, Incoming, accepted, send_output
from vtryon_services.rpc.concurrency import ConcurrencyLimiter
from vtryon_services.rpc.timings import one_hop
from vtryon_services.stages.text_encoder.settings import TextEncoderSettings
from vtryon_services.storage.cache import ResultCache
from vtryon_services.validation.ranges import PromptRanges, check_ranges

STAGE = Stage.TEXT_ENCODER


class TextEncoderStage:
    """Accepts a prompt and pictures, waits for a permit, returns embeddings."""

    def __init__(self, backend: TextEncoderBackend, settings: TextEncoderSettings) -> None:
        self._backend = backend
        self._limiter = ConcurrencyLimiter(STAGE, settings.max_concurrency, settings.max_waiting)
        self._max_pictures = settings.max_pictures
        self._cache: ResultCache[Embeddings] = ResultCache(
            STAGE.value, settings.cache_bytes, _bytes_of, per_tenant=settings.cache_per_tenant
        )

    async def encode(
        self, start: EncodeTextStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `TextEncoderService.Encode`."""
        numerics = resolve(start.numerics)
        check_ranges(start, PromptRanges)
        self._check_kinds(start)
        self._limiter.check_room(call.tenant)
        images = await incoming.receive()
        prompts = (start.prompt, start.negative_prompt)
        key = await self._cache.key(
            call.tenant, images, self._backend.digest, *prompts, numerics.resize
        )
        yield accepted(
            STAGE,
            call,
            model_digest=self._backend.digest,
            numerics=numerics_for(STAGE, numerics.to_wire()),
            unused_options=unused_numerics(STAGE, start.numerics),
            cached=self._cache.had(call.tenant, [key]),
        )
        for image in images:
            await asyncio.to_thread(self._backend.check, image)
        with self._limiter.enter(call.tenant) as permit:
            async for position in permit:
                yield Queued(STAGE, position)

            async def encode(_: Sequence[int]) -> Sequence[Embeddings]:
                return [await self._backend.encode(*prompts, images, numerics)]

            [embeddings] = await self._cache.get([key], encode)
        async for event in send_output(_outgoing(embeddings)):
            yield event
        yield Finished(one_hop(STAGE, call, permit.waited_seconds, permit.held_seconds))

    def _check_kinds(self, start: EncodeTextStart) -> None:
        kinds = [payload.kind for payload in start.payloads]
        if any(kind is not PayloadKind.IMAGE for kind in kinds) or len(kinds) > self._max_pictures:
            raise RequestError(
                f"the text encoder takes up to {self._max_pictures} payloads of kind IMAGE",
                reason=Reason.PAYLOAD_INVALID,
            )
        self._backend.check_pictures(len(kinds))


def _bytes_of(embeddings: Embeddings) -> int:
    return sum(item.payload.byte_length for item in _outgoing(embeddings))


def _outgoing(embeddings: Embeddings) -> list[Outgoing]:
    both = [
        (PayloadKind.EMBEDDINGS, embeddings.positive),
        (PayloadKind.NEGATIVE_EMBEDDINGS, embeddings.negative),
    ]
    return [tensor.outgoing(kind) for kind, tensor in both if tensor is not None]
