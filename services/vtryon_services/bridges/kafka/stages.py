"""Every stage on its own topics; a try-on goes from topic to topic, without a coordinator.

A request carries the inputs of the later stages and its route: each worker adds its result and
passes the request on. Stored payloads are passed on as claims.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vtryon.catalog import JOBS
from vtryon.client import Client
from vtryon.errors import DeadlineError, ProtocolError, VtryonError
from vtryon.jobs import JobState
from vtryon.pictures import digest
from vtryon.run import Run, StreamedResult
from vtryon.types import PayloadKind, Priority
from vtryon.wire.payloads import Outgoing
from vtryon.wire.stream import StreamCall
from vtryon_services.bridges.kafka.choreography import Choreography
from vtryon_services.bridges.kafka.claims import ClaimStore
from vtryon_services.bridges.kafka.conversions import (
    answerable,
    error_record,
    fit_records,
    hop_records,
    payload_record,
    picture_record,
    read_options,
    read_payload,
    unused_records,
)
from vtryon_services.bridges.kafka.messages import Message, ReceivedMessage
from vtryon_services.bridges.kafka.records import (
    PayloadRecord,
    StageRequestRecord,
    StageResponseRecord,
)
from vtryon_services.bridges.kafka.route import ROUTE, check_payloads, check_route, renamed
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names
from vtryon_services.graph import GRAPH, PICTURES
from vtryon_services.validation.ranges import check_labels, check_request_id


class StageWork:
    """Does the work of one stage, by a call of its service."""

    def __init__(
        self,
        stage: str,
        settings: KafkaSettings,
        codec: Codec,
        claims: ClaimStore,
        sender: Sender,
        client: Client,
    ) -> None:
        self.names = Names(settings, stage)
        self._stage = stage
        self._spec = GRAPH[stage]
        self._settings = settings
        self._choreography = Choreography(settings, codec)
        self._codec = codec
        self._claims = claims
        self._sender = sender
        self._client = client

    async def handle(self, received: ReceivedMessage) -> Sequence[Message]:
        """Call the stage, and pass its result on.

        Raises:
            VtryonError: it failed.
        """
        record = await self._codec.decode(StageRequestRecord, received.value)
        received.check_headers()
        check_request_id(record.request_id)
        check_labels(record.labels)
        check_route(self._stage, record.route)
        left = received.left_seconds(self._settings.work_timeout_seconds)
        if left <= 0:
            raise DeadlineError(f"out of time before {self._stage} began")
        inputs = await self._inputs(record)
        headers = received.passed_on()
        if record.job_id and self._stage == ROUTE[0]:
            event = self._choreography.event(record, JobState.RUNNING, headers)
            await self._sender.send([event])
        result = await self._call(received, record, inputs, left)
        return await self._passed_on(self._extended(record, result), result, headers)

    def _extended(self, record: StageRequestRecord, result: StreamedResult) -> StageRequestRecord:
        """Add the stage's report to that of the stages before it."""
        accepted, finished = result.accepted, result.finished
        unused = {one.field: one for one in unused_records(accepted.unused_options)}
        unused |= {one.field: one for one in record.unused_options}
        digests = {self._stage: accepted.model_digest} if accepted.model_digest else {}
        hops = finished.ledger.hops if finished.ledger else ()
        return replace(
            record,
            hops=(*record.hops, *hop_records(hops)),
            unused_options=tuple(unused.values()),
            fits=fit_records(finished.fits) or record.fits,
            model_digests={**record.model_digests, **digests},
        )

    async def _inputs(self, record: StageRequestRecord) -> list[Outgoing]:
        inputs, room = [], self._settings.max_payload_bytes
        payloads = [read_payload(one) for one in record.payloads]
        check_payloads(self._stage, record, [payload.kind for payload in payloads])
        for number, payload in enumerate(payloads):
            if payload.kind not in self._spec.takes:
                continue  # for a later stage, or left by an earlier one
            content = record.payloads[number].content
            data = await self._claims.unpack(f"payloads.{number}", content, room)
            room -= len(data)
            kind = PayloadKind.IMAGE if payload.kind in PICTURES else payload.kind
            inputs.append(Outgoing(replace(payload, kind=kind, byte_length=len(data)), data))
        return inputs

    async def _call(
        self,
        received: ReceivedMessage,
        record: StageRequestRecord,
        inputs: Sequence[Outgoing],
        left_seconds: float,
    ) -> StreamedResult:
        options = read_options(record.options)
        options = replace(options, priority=received.priority or Priority.BATCH)
        picture = inputs[:2][-1].data if inputs and self._spec.takes == PICTURES else b""
        assert isinstance(picture, bytes)
        content = await asyncio.to_thread(digest, picture) if picture else ""

        channel = self._client.acting_for(received.tenant).channel

        async def open_call(seconds: float | None) -> StreamCall:
            return StreamCall(
                channel,
                self._spec.method,
                self._spec.start(options, [one.payload for one in inputs]),
                inputs,
                timeout_seconds=seconds,
                request_id=record.request_id,
                content_digest=content,
            )

        return await Run(lambda: channel.attempts(left_seconds), open_call, lambda result: result)

    async def _passed_on(
        self, record: StageRequestRecord, result: StreamedResult, headers: Mapping[str, bytes]
    ) -> Sequence[Message]:
        route, key = record.route, record.request_id.encode()
        if route == (JOBS,):
            picture = result.picture()
            [content] = await self._claims.pack([picture.data])
            ended = picture_record(picture.image, content)
            return self._choreography.end(record, headers, picture=ended)
        kept = record.payloads if route else ()
        inline = sum(len(one.content.inline or b"") for one in kept)
        contents = await self._claims.pack(result.buffers, taken_bytes=inline)
        made = [
            payload_record(replace(one, kind=renamed(self._stage, one.kind, route)), content)
            for one, content in zip(result.payloads, contents, strict=True)
        ]
        if not route:
            return [self._response(record, headers, payloads=made)]
        request = self._codec.encode(replace(record, payloads=(*kept, *made), route=route[1:]))
        return [Message(Names(self._settings, route[0]).requests, key, request, headers)]

    async def failed(self, received: ReceivedMessage, error: VtryonError) -> Sequence[Message]:
        """Build the response that there will be no result; unreadable requests get none."""
        try:
            record = await self._codec.decode(StageRequestRecord, received.value)
        except ProtocolError:
            return []
        record, headers = answerable(record), received.refused(error)
        if record.route[-1:] == (JOBS,):
            return self._choreography.end(record, headers, error=error)
        return [self._response(record, headers, error=error)]

    def _response(
        self,
        record: StageRequestRecord,
        headers: Mapping[str, bytes],
        *,
        payloads: Sequence[PayloadRecord] = (),
        error: VtryonError | None = None,
    ) -> Message:
        response = StageResponseRecord(
            request_id=record.request_id,
            stage=self._stage,
            payloads=tuple(payloads),
            error=error_record(error),
            hops=record.hops,
            labels=record.labels,
            unused_options=record.unused_options,
            fits=record.fits,
            model_digests=record.model_digests,
        )
        key, value = record.request_id.encode(), self._codec.encode(response)
        return Message(self.names.responses, key, value, headers)
