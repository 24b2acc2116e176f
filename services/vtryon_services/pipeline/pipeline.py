"""The pipeline's service: checks a request, fills in defaults, and runs it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from vtryon.errors import Reason, RequestError
from vtryon.events import Event, Queued
from vtryon.sampling_options import reported_fields
from vtryon.seeds import draw_seed
from vtryon.types import (
    MAX_INLINE_BYTES,
    Numerics,
    Payload,
    PayloadKind,
    Stage,
    TryOnInline,
    TryOnOptions,
    TryOnStart,
    settled,
)
from vtryon.wire.payloads import Outgoing, chunks, outgoing_image
from vtryon.wire.retry import RetryBudget
from vtryon_services.engine.numerics import resolve
from vtryon_services.pipeline.attempts import FailoverPolicy
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.rpc.call import Call, Incoming, accepted
from vtryon_services.rpc.concurrency import ConcurrencyLimiter
from vtryon_services.validation.declarations import check_pictures
from vtryon_services.validation.ranges import ResumeRanges, check_options, check_ranges
from vtryon_services.validation.unused import unused_of_try_on

STAGE = Stage.PIPELINE


class EventFlow(Protocol):
    """One try-on on its way, in whatever topology."""

    def events(self) -> AsyncGenerator[Event, None]:
        """Run the stages and yield their events; closing the generator cancels them."""
        ...


MakeFlow = Callable[[TryOnStart, Incoming, Call, FailoverPolicy], EventFlow]


class Pipeline:
    """Serves both calls of `PipelineService` in one way."""

    def __init__(self, make_flow: MakeFlow, settings: PipelineSettings) -> None:
        self._make_flow = make_flow
        self._max_garments = settings.max_garments
        most = settings.max_requests
        self._limiter = ConcurrencyLimiter(STAGE, most, max_waiting=0, reserve=most // 2)
        self._retries = FailoverPolicy(
            RetryBudget(), settings.stage_attempts, settings.resume_every
        )

    async def try_on(
        self, start: TryOnStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `PipelineService.TryOn`."""
        self._check_kinds(start.payloads, resumed=start.resume is not None)
        check_ranges(start, ResumeRanges)
        async with aclosing(self._flow(start, incoming, call)) as events:
            async for event in events:
                yield event

    async def try_on_inline(
        self, request: TryOnInline, _incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `PipelineService.TryOnInline`."""
        total = len(request.person) + sum(map(len, request.garments))
        if total > MAX_INLINE_BYTES:
            raise RequestError(
                f"the pictures have {total} bytes together; an inline request takes "
                f"{MAX_INLINE_BYTES}: use TryOn",
                reason=Reason.PAYLOAD_TOO_LARGE,
            )
        outgoing = _inline_payloads(request)
        self._check_kinds([item.payload for item in outgoing])
        incoming = Incoming([item.payload for item in outgoing], chunks(outgoing))
        async with aclosing(
            self._flow(TryOnStart(options=request.options), incoming, call)
        ) as events:
            async for event in events:
                yield event

    async def _flow(
        self, start: TryOnStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        given = start.options or TryOnOptions()
        chosen = _choose(given)
        with self._limiter.enter(call.tenant) as permit:
            yield accepted(
                STAGE,
                call,
                numerics=_numerics(chosen),
                **reported_fields(chosen),
                width=chosen.width,
                height=chosen.height,
                unused_options=unused_of_try_on(given),
            )
            async for position in permit:
                yield Queued(STAGE, position)
            self._retries.budget.earn()
            flow = self._make_flow(replace(start, options=chosen), incoming, call, self._retries)
            async with aclosing(flow.events()) as events:
                async for event in events:
                    yield event

    def _check_kinds(self, payloads: Sequence[Payload], *, resumed: bool = False) -> None:
        pictures = payloads[:-1] if resumed else payloads
        if resumed and (not payloads or payloads[-1].kind is not PayloadKind.RESUME_LATENTS):
            raise RequestError(
                "resuming requires a payload of kind RESUME_LATENTS after the pictures",
                reason=Reason.PAYLOAD_INVALID,
            )
        check_pictures(pictures, self._max_garments)


def _choose(options: TryOnOptions) -> TryOnOptions:
    """Check the options, and choose a seed if none is set."""
    check_options(options)
    if not _may_bring_profile(options):
        resolve(options.numerics)
    return settled(options, draw_seed())


def _numerics(options: TryOnOptions) -> Numerics | None:
    """Return the request's numerics; None if the sampler chooses the profile, by the LoRAs."""
    return None if _may_bring_profile(options) else resolve(options.numerics).to_wire()


def _may_bring_profile(options: TryOnOptions) -> bool:
    """Whether the profile may come from a distilled LoRA, which the sampler alone knows."""
    return bool(options.loras) and not (options.numerics and options.numerics.profile)


def _inline_payloads(request: TryOnInline) -> list[Outgoing]:
    pictures = [(PayloadKind.PERSON_IMAGE, request.person)]
    pictures += [(PayloadKind.GARMENT_IMAGE, garment) for garment in request.garments]
    for kind, data in pictures:
        if not data:
            raise RequestError(f"the {kind} is empty", reason=Reason.PAYLOAD_INVALID)
    return [outgoing_image(kind, data) for kind, data in pictures]
