"""A try-on as one request to a Triton server: the same events as from four stages.

The responses reveal the progress inside the ensemble: the encoders are done when the first step
begins, and the last step arrives with the picture and with the decoding time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from vtryon.errors import RequestError, Violation, VtryonError
from vtryon.events import (
    Accepted,
    Event,
    Finished,
    Fit,
    Hop,
    Preview,
    Queued,
    StageFinished,
    StageStarted,
    StepFinished,
    UnusedOption,
)
from vtryon.sampling_options import reported_fields
from vtryon.types import PayloadKind, Stage, TryOnStart
from vtryon.wire.payloads import Buffer, outgoing_image
from vtryon_services.backends.ensemble import Progress, TritonTryOn
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.plan import QueuePosition
from vtryon_services.pipeline.attempts import FailoverPolicy, StageAttempts
from vtryon_services.pipeline.timings import name_subjects, with_own_share
from vtryon_services.rpc.call import Call, Incoming, send_output
from vtryon_services.validation.unused import unused_options


class EnsembleFlow:
    """One try-on on its way through the model `tryon`."""

    def __init__(
        self,
        ensemble: TritonTryOn,
        start: TryOnStart,
        incoming: Incoming,
        call: Call,
        retries: FailoverPolicy,
    ) -> None:
        self._ensemble = ensemble
        assert start.options is not None
        self._request = start
        self._options = start.options
        self._incoming = incoming
        self._call = call
        self._attempts = StageAttempts(retries.budget, retries.attempts)
        resumed = PayloadKind.RESUME_LATENTS
        pictures = [payload for payload in incoming.payloads if payload.kind is not resumed]
        self._subjects = name_subjects(pictures)
        self._sent_at = self._encoded_at = 0.0
        self._steps_told = 0
        self._compute_seconds = 0.0
        self._fits: tuple[Fit, ...] = ()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Run the ensemble and yield its events; closing the generator cancels it in the server.

        Raises:
            VtryonError: it failed, and there is no other attempt.
        """
        self._ensemble.check_pictures(len(self._subjects))
        if self._options.loras:
            words = (
                "a Triton ensemble applies none; send the request to a pipeline with the topology "
                "direct, and a sampler with the backend torch"
            )
            raise RequestError(f"loras: {words}", violations=(Violation("loras", words),))
        received = await self._incoming.receive()
        # An ensemble can't be entered in the middle: it begins anew, and draws the same.
        pictures = received[: len(self._subjects)]
        self._sent_at = self._call.elapsed_seconds
        for stage, subject in self._encoders:
            yield self._start(stage, subject)
        finished = False
        while not finished:
            try:
                async with aclosing(self._attempt(pictures)) as events:
                    async for event in events:
                        yield event
                finished = True
            except VtryonError as error:
                if not self._attempts.may_go_on(error, self._call.remaining_seconds):
                    raise
                await asyncio.sleep(self._attempts.pause_seconds)

    @property
    def _encoders(self) -> list[tuple[Stage, str]]:
        return [(Stage.LATENT_ENCODER, ", ".join(self._subjects)), (Stage.TEXT_ENCODER, "")]

    async def _attempt(self, pictures: Sequence[Buffer]) -> AsyncGenerator[Event, None]:
        answers = self._ensemble.draw(
            self._options,
            pictures,
            timeout_seconds=max(0.001, self._call.remaining_seconds),
            tenant=self._call.tenant,
        )
        async with aclosing(answers):
            async for answer in answers:
                if isinstance(answer, QueuePosition):
                    yield Queued(Stage.SAMPLING, answer.position, answer.expected_seconds)
                    continue
                if answer.step > self._steps_told:
                    for event in self._describe(answer):
                        yield event
                if (drawn := answer.picture) is not None:
                    outgoing = outgoing_image(PayloadKind.IMAGE, drawn.data, drawn.image)
                    async for event in send_output([outgoing]):
                        yield event
                    yield self._finish(answer)

    def _describe(self, answer: Progress) -> list[Event]:
        events: list[Event] = []
        if not self._steps_told:
            own_seconds = answer.compute_seconds + answer.decoding_seconds
            self._encoded_at = max(self._sent_at, self._call.elapsed_seconds - own_seconds)
            self._fits = answer.fits
            took = self._encoded_at - self._sent_at
            events += [StageFinished(stage, subject, took) for stage, subject in self._encoders]
            guidance = self._ensemble.guidance(self._options)
            unused = unused_options(
                self._options,
                guidance.scale,
                negative=self._options.negative_prompt is not None,
                norm=resolve(self._options.numerics).guidance_norm,
                can_preview=self._ensemble.can_preview,
            )
            unused += tuple(_of_resuming(self._request))
            reported = reported_fields(guidance.options)
            events.append(self._start(Stage.SAMPLING, **reported, unused_options=unused))
        self._steps_told = answer.step
        self._call.facts["completed_steps"] = str(answer.step)
        self._compute_seconds += answer.compute_seconds
        events.append(StepFinished(answer.step, answer.steps, answer.sigma, answer.compute_seconds))
        if answer.preview is not None:
            events.append(Preview(answer.step, answer.steps, answer.preview))
        if answer.picture is not None:
            sampled = self._call.elapsed_seconds - answer.decoding_seconds - self._encoded_at
            events.append(StageFinished(Stage.SAMPLING, "", sampled))
            events.append(self._start(Stage.DECODING))
            events.append(StageFinished(Stage.DECODING, "", answer.decoding_seconds))
        return events

    def _start(self, stage: Stage, subject: str = "", **chosen: Any) -> StageStarted:
        digest = self._ensemble.digests[stage]
        return StageStarted(stage, subject, Accepted(stage, model_digest=digest, **chosen))

    def _finish(self, answer: Progress) -> Finished:
        now = self._call.elapsed_seconds
        decoding_at = max(self._encoded_at, now - answer.decoding_seconds)
        encoding = self._encoded_at - self._sent_at
        sampling = decoding_at - self._encoded_at
        hops = [
            Hop(
                stage,
                subject,
                self._sent_at,
                compute_seconds=encoding,
                critical=stage is Stage.TEXT_ENCODER,
            )
            for stage, subject in self._encoders
        ]
        computed = min(sampling, self._compute_seconds)
        hops += [
            Hop(
                Stage.SAMPLING,
                start_seconds=self._encoded_at,
                transfer_seconds=sampling - computed,
                compute_seconds=computed,
            ),
            Hop(Stage.DECODING, start_seconds=decoding_at, compute_seconds=now - decoding_at),
        ]
        fits = tuple(
            replace(fit, subject=subject)
            for fit, subject in zip(self._fits, self._subjects, strict=False)
        )
        return Finished(with_own_share(hops, self._call.elapsed_seconds), fits)


def _of_resuming(start: TryOnStart) -> Iterator[UnusedOption]:
    """List the requested resume options: an ensemble always starts from the first step."""
    if start.resume is not None:
        yield UnusedOption(
            "resume", "the topology `ensemble` begins anew, which draws the same picture"
        )
    if start.resume_every:
        yield UnusedOption("resume_every", "the topology `ensemble` gives no resume points")
