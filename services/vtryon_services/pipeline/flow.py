"""One try-on through the stages.

    person ──┬─▶ latent encoder ─┬─▶ sampling ─▶ decoding ─▶ caller
    garment ─┴─▶ text encoder ───┘

Every arrow is a relay of chunks. The stages run as tasks of one group: if one fails, the others are
cancelled, and with them their calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from vtryon.errors import VtryonError
from vtryon.events import Chunk, Event, Finished, Fit, Output, Preview, ResumeChunk
from vtryon.types import Payload, PayloadKind, Stage, Start, TryOnStart
from vtryon.wire.payloads import Outgoing
from vtryon_services.graph import GRAPH, sample_start
from vtryon_services.pipeline.attempts import FailoverPolicy, StageAttempts
from vtryon_services.pipeline.clients import StageCall, StageClients
from vtryon_services.pipeline.relay import Fanout, Replay
from vtryon_services.pipeline.stage_run import StageRun, as_kind
from vtryon_services.pipeline.timings import name_subjects, with_own_share
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.runtime.metrics import count_dropped_preview
from vtryon_services.validation.resuming import check_encoders, digest_of_encoders

_EVENTS_HELD = 64


class Flow:
    """One try-on on its way."""

    def __init__(
        self,
        stages: StageClients,
        start: TryOnStart,
        incoming: Incoming,
        call: Call,
        retries: FailoverPolicy,
    ) -> None:
        self._stages = stages
        assert start.options is not None
        self._options = start.options
        self._start = start
        self._incoming = incoming
        self._call = call
        self._retries = retries
        self._runs: list[StageRun] = []
        self._encoders_digest = ""
        self._events: asyncio.Queue[Event | None] = asyncio.Queue(_EVENTS_HELD)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Run the stages, and yield their events; closing the generator cancels them.

        Raises:
            VtryonError: the first failure of a stage, or of the client's stream.
        """
        work = asyncio.create_task(self._work())
        try:
            while (event := await self._events.get()) is not None:
                yield event
            await work
        except BaseExceptionGroup as group:
            raise _first_cause(group) from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await self._run_stages(group)
            await self._emit(self._finished())
        except BaseException:
            while not self._events.empty():  # what was said before a failure need not be read
                self._events.get_nowait()
            self._events.put_nowait(None)
            raise
        await self._events.put(None)

    async def _run_stages(self, group: asyncio.TaskGroup) -> None:
        pictures = Fanout(self._incoming.payloads)
        resumed = [
            Outgoing(payload, pictures.relay(index))
            for index, payload in enumerate(self._incoming.payloads)
            if payload.kind is PayloadKind.RESUME_LATENTS
        ]
        given = [*await self._encode(group, pictures), *resumed]
        latents = await self._sample(group, given)
        [picture] = await self._decode(group, latents)
        await self._emit(Output((picture.payload,)))
        offset = 0
        async for piece in picture.data:  # type: ignore[union-attr]
            await self._emit(Chunk(0, offset, piece))
            offset += len(piece)

    @property
    def _pictures(self) -> list[Payload]:
        kinds = {PayloadKind.PERSON_IMAGE, PayloadKind.GARMENT_IMAGE}
        return [payload for payload in self._incoming.payloads if payload.kind in kinds]

    async def _encode(self, group: asyncio.TaskGroup, pictures: Fanout) -> list[Outgoing]:
        options, declared = self._options, self._pictures

        def images() -> list[Outgoing]:
            return [
                as_kind(Outgoing(payload, pictures.relay(index)), PayloadKind.IMAGE)
                for index, payload in enumerate(declared)
            ]

        subjects = name_subjects(declared)
        latents = self._open(
            group,
            Stage.LATENT_ENCODER,
            GRAPH[Stage.LATENT_ENCODER].start(options, declared),
            images(),
            subjects,
        )
        text = GRAPH[Stage.TEXT_ENCODER].start(options, declared)
        texts = self._open(group, Stage.TEXT_ENCODER, text, images())
        group.create_task(self._pass_on(pictures))
        embeddings = await texts.output
        references = [as_kind(one, PayloadKind.REFERENCE_LATENTS) for one in await latents.output]
        self._encoders_digest = digest_of_encoders(latents.model_digest, texts.model_digest)
        check_encoders(self._start.resume, self._encoders_digest)
        return [*embeddings, *references]

    async def _pass_on(self, pictures: Fanout) -> None:
        async for chunk in self._incoming.chunks:
            await pictures.pass_on(chunk)

    async def _sample(self, group: asyncio.TaskGroup, given: Sequence[Outgoing]) -> list[Outgoing]:
        start = replace(
            sample_start(self._options, [one.payload for one in given]),
            resume=self._start.resume,
            resume_every=self._start.resume_every or self._retries.resume_every,
        )
        return await self._open(group, Stage.SAMPLING, start, given).output

    async def _decode(
        self, group: asyncio.TaskGroup, latents: Sequence[Outgoing]
    ) -> list[Outgoing]:
        start = GRAPH[Stage.DECODING].start(self._options, [one.payload for one in latents])
        return await self._open(group, Stage.DECODING, start, latents).output

    def _open(
        self,
        group: asyncio.TaskGroup,
        stage: Stage,
        start: Start,
        outgoing: Sequence[Outgoing],
        subjects: Sequence[str] = (),
    ) -> StageRun:
        client = self._stages.by_stage[stage]
        kept = [replace(item, data=Replay(item.data)) for item in outgoing]

        def open_call(attempts: StageAttempts) -> StageCall:
            return client.open(
                attempts.start(start),
                attempts.payloads(start, kept),
                timeout_seconds=max(0.001, self._call.remaining_seconds),
                request_id=self._call.request_id,
                tenant=self._call.tenant,
                content_digest=self._call.content_digest,
            )

        told = bool(self._start.resume_every)
        attempts = StageAttempts(self._retries.budget, self._retries.attempts, told)
        run = StageRun(stage, subjects, self._call, self._emit, attempts)
        self._runs.append(run)
        group.create_task(run.run(client, open_call))
        return run

    async def _emit(self, event: Event) -> None:
        if isinstance(event, Preview) and self._events.full():
            count_dropped_preview(Stage.PIPELINE.value)
            return  # a slow reader costs previews, never steps
        if isinstance(event, ResumeChunk):
            event = replace(event, encoders_digest=self._encoders_digest)
        await self._events.put(event)

    def _finished(self) -> Finished:
        encoders = [
            run for run in self._runs if run.stage in {Stage.LATENT_ENCODER, Stage.TEXT_ENCODER}
        ]
        last = max(encoders, key=lambda run: run.output_at)
        hops = [run.hop(critical=run is last or run not in encoders) for run in self._runs]
        fits: tuple[Fit, ...] = tuple(fit for run in self._runs for fit in run.fits)
        return Finished(with_own_share(hops, self._call.elapsed_seconds), fits)


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return a VtryonError of the group, if there is one: the other failures follow from it."""
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat += [_first_cause(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((error for error in flat if isinstance(error, VtryonError)), flat[0])
