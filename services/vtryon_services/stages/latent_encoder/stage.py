"""Encode pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from vtryon.errors import Reason, RequestError
from vtryon.events import Event, Finished, Queued
from vtryon.types import EncodeLatentsStart, PayloadKind, Stage
from vtryon_services.backends.protocols import LatentEncoderBackend, Latents
from vtryon_services.engine.numerics import resolve
from vtryon_services.graph import numerics_for, unused_numerics
from vtryon_services.rpc.call import Call, Incoming, accepted, send_output
from vtryon_services.rpc.concurrency import ConcurrencyLimiter
from vtryon_services.rpc.timings import one_hop
from vtryon_services.stages.latent_encoder.settings import LatentEncoderSettings
from vtryon_services.storage.cache import ResultCache

STAGE = Stage.LATENT_ENCODER


class LatentEncoderStage:
    """Accepts pictures, waits for a permit, returns the latents of each."""

    def __init__(self, backend: LatentEncoderBackend, settings: LatentEncoderSettings) -> None:
        self._backend = backend
        self._limiter = ConcurrencyLimiter(STAGE, settings.max_concurrency, settings.max_waiting)
        self._max_pictures = settings.max_pictures
        self._cache: ResultCache[Latents] = ResultCache(
            STAGE.value,
            settings.cache_bytes,
            lambda latents: len(latents.tensor.data),
            per_tenant=settings.cache_per_tenant,
        )

    async def encode(
        self, start: EncodeLatentsStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `LatentEncoderService.Encode`."""
        numerics = resolve(start.numerics)
        self._check_kinds(start)
        self._limiter.check_room(call.tenant)
        pictures = await incoming.receive()
        keys = await asyncio.gather(
            *(
                self._cache.key(call.tenant, [picture], self._backend.digest, numerics.resize)
                for picture in pictures
            )
        )

        async def encode(places: Sequence[int]) -> Sequence[Latents]:
            return await self._backend.encode([pictures[place] for place in places], numerics)

        yield accepted(
            STAGE,
            call,
            model_digest=self._backend.digest,
            numerics=numerics_for(STAGE, numerics.to_wire()),
            unused_options=unused_numerics(STAGE, start.numerics),
            cached=self._cache.had(call.tenant, keys),
        )
        for picture in pictures:
            await asyncio.to_thread(self._backend.check, picture)
        with self._limiter.enter(call.tenant) as permit:
            async for position in permit:
                yield Queued(STAGE, position)
            found = await self._cache.get(keys, encode)
        async for event in send_output(
            [latents.tensor.outgoing(PayloadKind.LATENTS) for latents in found]
        ):
            yield event
        yield Finished(
            one_hop(STAGE, call, permit.waited_seconds, permit.held_seconds),
            fits=tuple(latents.fit for latents in found),
        )

    def _check_kinds(self, start: EncodeLatentsStart) -> None:
        kinds = {payload.kind for payload in start.payloads}
        if kinds != {PayloadKind.IMAGE} or len(start.payloads) > self._max_pictures:
            raise RequestError(
                f"the latent encoder takes 1 to {self._max_pictures} payloads, of kind IMAGE",
                reason=Reason.PAYLOAD_INVALID,
            )
        self._backend.check_pictures(len(start.payloads))
