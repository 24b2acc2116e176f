"""Encode one picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from vtryon.errors import Reason, RequestError
from vtryon.events import Event, Finished, Queued
from vtryon.types import EncodeLatentsStart, PayloadKind, Stage
from vtryon_services.backends.protocols import LatentEncoderBackend, Latents
from vtryon_services.engine.numerics import resolve
from vtryon_services.runtime.cache import ResultCache
from vtryon_services.runtime.call import Call, Incoming, accepted, send_output
from vtryon_services.runtime.ledger import one_hop
from vtryon_services.runtime.places import Places
from vtryon_services.stages.latent_encoder.settings import LatentEncoderSettings

STAGE = Stage.LATENT_ENCODER


class LatentEncoderStage:
    """Takes one picture, waits for a place, gives its latents."""

    def __init__(self, backend: LatentEncoderBackend, settings: LatentEncoderSettings) -> None:
        self._backend = backend
        self._places = Places(settings.places, settings.max_waiting)
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
        if [payload.kind for payload in start.payloads] != [PayloadKind.IMAGE]:
            raise RequestError(
                "the latent encoder takes one payload, of kind IMAGE",
                reason=Reason.PAYLOAD_INVALID,
            )
        self._places.check_room()
        [picture] = await incoming.receive()
        key = await self._cache.key(call.tenant, [picture], numerics.resize)
        yield accepted(
            STAGE,
            call,
            model_digest=self._backend.digest,
            numerics=numerics.to_wire(),
            cached=key in self._cache,
        )
        await asyncio.to_thread(self._backend.check, picture)
        with self._places.enter() as ticket:
            async for position in ticket:
                yield Queued(STAGE, position)
            latents, fit = await self._cache.get(
                key, lambda: self._backend.encode(picture, numerics)
            )
        async for event in send_output([latents.outgoing(PayloadKind.LATENTS)]):
            yield event
        yield Finished(
            one_hop(STAGE, call, ticket.waited_seconds, ticket.held_seconds), fits=(fit,)
        )
