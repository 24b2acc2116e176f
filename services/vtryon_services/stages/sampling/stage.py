"""Denoise one request."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from vtryon.errors import StageError
from vtryon.events import (
    Event,
    Finished,
    Preview,
    Queued,
    ResumeChunk,
    StepFinished,
    UnusedOption,
)
from vtryon.sampling_options import reported_fields
from vtryon.types import PayloadKind, Priority, SampleStart, Stage
from vtryon.wire.payloads import cut
from vtryon_services.backends.protocols import OutputOptions, SamplingBackend, StepDone
from vtryon_services.engine.loras.choice import digest_with
from vtryon_services.engine.plan import QueuePosition, SamplingPlan, SamplingRequest, count_tokens
from vtryon_services.engine.planning import plan_of
from vtryon_services.graph import numerics_for, unused_numerics
from vtryon_services.rpc.call import Call, Incoming, accepted, send_output
from vtryon_services.rpc.timings import one_hop
from vtryon_services.stages.sampling.conditioning import check_declared, receive
from vtryon_services.stages.sampling.settings import SamplingSettings
from vtryon_services.validation.ranges import (
    LoraRanges,
    PreviewsRange,
    ResumeRanges,
    SamplingRanges,
    SizeRanges,
    check_ranges,
)
from vtryon_services.validation.resuming import check_sampler
from vtryon_services.validation.unused import unused_options

STAGE = Stage.SAMPLING


class SamplingStage:
    """Accepts embeddings and latents, waits for a batch slot, denoises step by step."""

    def __init__(self, backend: SamplingBackend, settings: SamplingSettings) -> None:
        self._backend = backend
        self._max_references = settings.max_references

    async def sample(
        self, start: SampleStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `SamplingService.Sample`.

        Closing the generator frees the slot; no step begins afterwards.
        """
        check_ranges(start, SamplingRanges, LoraRanges, PreviewsRange, SizeRanges, ResumeRanges)
        plan = plan_of(start, self._backend)
        digest = digest_with(self._backend.digest, plan.loras, self._backend.loras)
        check_declared(start, self._backend, self._max_references)
        check_sampler(start.resume, digest)
        slot = self._backend.admit(_sampling_request(start, plan, call))
        try:
            yield accepted(
                STAGE,
                call,
                model_digest=digest,
                numerics=numerics_for(STAGE, plan.numerics.to_wire()),
                **reported_fields(plan.options),
                sigmas=plan.sigmas,
                width=plan.width,
                height=plan.height,
                unused_options=self._unused(start, plan),
            )
            given = await receive(incoming)
            received = time.monotonic()
            computed, latents = 0.0, None
            wanted = OutputOptions(start.previews, start.resume_every)
            async with aclosing(slot.sample(given, wanted)) as items:
                async for item in items:
                    if isinstance(item, QueuePosition):
                        yield Queued(STAGE, item.position, item.expected_seconds)
                        continue
                    call.facts["completed_steps"] = str(item.step)
                    computed, latents = computed + item.compute_seconds, item.latents
                    told = {"step": item.step, "compute_seconds": item.compute_seconds}
                    call.span.add_event("step", told)
                    for event in _events(item, plan, digest):
                        yield event
        finally:
            slot.leave()
        if latents is None:
            raise StageError("the backend ended without latents")
        queued = max(0.0, time.monotonic() - received - computed)
        async for event in send_output([latents.outgoing(PayloadKind.LATENTS)]):
            yield event
        yield Finished(one_hop(STAGE, call, queued, computed))

    def _unused(self, start: SampleStart, plan: SamplingPlan) -> tuple[UnusedOption, ...]:
        kinds = {payload.kind for payload in start.payloads}
        negative = PayloadKind.NEGATIVE_EMBEDDINGS in kinds
        return (
            *unused_options(
                start,
                plan.guidance.scale,
                negative=negative,
                norm=plan.numerics.guidance_norm,
                can_preview=self._backend.can_preview,
            ),
            *unused_numerics(STAGE, start.numerics),
        )


def _events(done: StepDone, plan: SamplingPlan, digest: str) -> list[Event]:
    steps = plan.steps
    events: list[Event] = [
        StepFinished(done.step, steps, plan.sigmas[done.step], done.compute_seconds)
    ]
    if done.preview is not None:
        events.append(Preview(done.step, steps, done.preview))
    if done.latents is not None and done.step < steps:
        data = done.latents.data
        events += [
            ResumeChunk(done.step, at, len(data), bytes(piece), digest) for at, piece in cut(data)
        ]
    return events


def _sampling_request(start: SampleStart, plan: SamplingPlan, call: Call) -> SamplingRequest:
    shapes: dict[PayloadKind | None, list[tuple[int, ...]]] = defaultdict(list)
    for payload in start.payloads:
        assert payload.tensor is not None
        shapes[payload.kind].append(payload.tensor.shape)
    [(text, _)] = shapes[PayloadKind.EMBEDDINGS]
    return SamplingRequest(
        plan,
        count_tokens(plan, text, shapes[PayloadKind.REFERENCE_LATENTS]),
        guided=plan.guidance.is_on and PayloadKind.NEGATIVE_EMBEDDINGS in shapes,
        priority=start.priority or Priority.INTERACTIVE,
        tenant=call.tenant,
        deadline=time.monotonic() + call.remaining_seconds,
    )
