"""Decode one picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from vtryon.events import Event, Finished, Queued
from vtryon.tensors import Tensor
from vtryon.types import DataType, DecodeStart, ImageFormat, PayloadKind, Stage, TensorSpec
from vtryon.wire.payloads import outgoing_image
from vtryon_services.backends.protocols import DecodingBackend
from vtryon_services.engine.finite import check_finite
from vtryon_services.rpc.call import Call, Incoming, accepted, send_output
from vtryon_services.rpc.concurrency import ConcurrencyLimiter
from vtryon_services.rpc.timings import one_hop
from vtryon_services.stages.decoding.settings import DecodingSettings
from vtryon_services.validation.declarations import payload_invalid
from vtryon_services.validation.ranges import EncodingRanges, check_ranges

STAGE = Stage.DECODING


class DecodingStage:
    """Accepts latents, waits for a permit, returns a picture."""

    def __init__(self, backend: DecodingBackend, settings: DecodingSettings) -> None:
        self._backend = backend
        self._limiter = ConcurrencyLimiter(STAGE, settings.max_concurrency, settings.max_waiting)

    async def decode(
        self, start: DecodeStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `DecodingService.Decode`."""
        check_ranges(start, EncodingRanges)
        spec = self._check_declared(start)
        _, height, width = spec.shape
        self._limiter.check_room(call.tenant)
        yield accepted(
            STAGE, call, model_digest=self._backend.digest, width=width * 8, height=height * 8
        )
        [buffer] = await incoming.receive()
        latents = Tensor(spec, buffer)
        await asyncio.to_thread(check_finite, latents, "latents")
        with self._limiter.enter(call.tenant) as permit:
            async for position in permit:
                yield Queued(STAGE, position)
            picture = await self._backend.decode(
                latents, start.format or ImageFormat.PNG, start.quality
            )
        outgoing = outgoing_image(PayloadKind.IMAGE, picture.data, picture.image)
        async for event in send_output([outgoing]):
            yield event
        yield Finished(one_hop(STAGE, call, permit.waited_seconds, permit.held_seconds))

    def _check_declared(self, start: DecodeStart) -> TensorSpec:
        specs = [item.tensor for item in start.payloads if item.kind is PayloadKind.LATENTS]
        if len(start.payloads) != 1 or not specs or specs[0] is None:
            raise payload_invalid("the decoder takes one payload, a tensor of kind LATENTS")
        spec = specs[0]
        channels = self._backend.channels
        if spec.data_type is not DataType.FP32 or len(spec.shape) != 3 or spec.shape[0] != channels:
            raise payload_invalid(
                f"the latents are {spec.data_type} {spec.shape}; "
                f"it takes FP32 ({channels}, height / 8, width / 8)"
            )
        if spec.shape[1] * spec.shape[2] * 64 > self._backend.max_target_area:
            raise payload_invalid(
                f"latents of {spec.shape} make over {self._backend.max_target_area} pixels, "
                "the checkpoint's limit"
            )
        return spec
