"""Every stage on its own topics; a try-on goes from topic to topic, with nobody in the middle.

A request carries what the stages behind it will need and where it goes next: each worker adds its
result and passes it on. Bytes that are kept elsewhere stay there; their claims are passed on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from vtryon.client import Client
from vtryon.errors import DeadlineError, ProtocolError, RequestError, VtryonError
from vtryon.jobs import JobState
from vtryon.payloads import Outgoing
from vtryon.pictures import digest
from vtryon.run import Received as Result
from vtryon.run import Run
from vtryon.stream import DECODE, ENCODE_LATENTS, ENCODE_TEXT, SAMPLE, Method, StreamCall
from vtryon.types import (
    DecodeStart,
    EncodeLatentsStart,
    EncodeTextStart,
    Payload,
    PayloadKind,
    Priority,
    Stage,
    Start,
    TryOnOptions,
    sample_start,
)
from vtryon_services.bridges.kafka.claims import Claims
from vtryon_services.bridges.kafka.jobs import EVENT, RESPONSE, JobRequests
from vtryon_services.bridges.kafka.messages import DEADLINE, PRIORITY, REASON, Message, Received
from vtryon_services.bridges.kafka.records import (
    error_record,
    event_record,
    hop_records,
    options_record,
    payload_record,
    picture_record,
    read_options,
    read_payload,
    response_record,
)
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names
from vtryon_services.runtime.ranges import check_options, check_request_id
from vtryon_services.runtime.settings import JOBS

STAGE_REQUEST, STAGE_RESPONSE = "stage_request", "stage_response"
# A try-on's way. Its events' sequence numbers: waiting, begun, ended.
ROUTE: tuple[str, ...] = (
    Stage.TEXT_ENCODER,
    Stage.LATENT_ENCODER,
    Stage.SAMPLING,
    Stage.DECODING,
    JOBS,
)
_WAITING, _BEGUN, _ENDED = 1, 2, 3
_PICTURES = {PayloadKind.IMAGE, PayloadKind.PERSON_IMAGE, PayloadKind.GARMENT_IMAGE}
_EMBEDDINGS = {PayloadKind.EMBEDDINGS, PayloadKind.NEGATIVE_EMBEDDINGS}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a stage takes of a request, how it is called, and as what it takes pictures."""

    method: Method
    takes: frozenset[PayloadKind]
    gives: frozenset[PayloadKind]
    start: Callable[[TryOnOptions, Sequence[Payload]], Start]

    def named(self, kind: PayloadKind | None, route: Sequence[str]) -> PayloadKind | None:
        """Name what the stage gave as the next stage takes it."""
        reference = PayloadKind.REFERENCE_LATENTS
        return reference if route and reference in self.gives else kind


def _text(options: TryOnOptions, _: Sequence[Payload]) -> Start:
    return EncodeTextStart(
        numerics=options.numerics,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
    )


def _sample(options: TryOnOptions, given: Sequence[Payload]) -> Start:
    width, height = options.width or 0, options.height or 0
    if not width and not height:  # the person's, as it was encoded
        latents = [one.tensor for one in given if one.kind is PayloadKind.REFERENCE_LATENTS]
        if latents and latents[0] and len(latents[0].shape) == 3:
            _, rows, columns = latents[0].shape
            width, height = columns * 8, rows * 8
    return sample_start(options, width, height)


KINDS: dict[str, Kind] = {
    Stage.TEXT_ENCODER: Kind(ENCODE_TEXT, frozenset(_PICTURES), frozenset(_EMBEDDINGS), _text),
    Stage.LATENT_ENCODER: Kind(
        ENCODE_LATENTS,
        frozenset(_PICTURES),
        frozenset({PayloadKind.REFERENCE_LATENTS}),
        lambda options, _: EncodeLatentsStart(numerics=options.numerics),
    ),
    Stage.SAMPLING: Kind(
        SAMPLE,
        frozenset({*_EMBEDDINGS, PayloadKind.REFERENCE_LATENTS, PayloadKind.NOISE}),
        frozenset({PayloadKind.LATENTS}),
        _sample,
    ),
    Stage.DECODING: Kind(
        DECODE,
        frozenset({PayloadKind.LATENTS}),
        frozenset(),
        lambda options, _: DecodeStart(format=options.format, quality=options.quality),
    ),
}


class ChainedJobs(JobRequests):
    """The topology `kafka`: a request is put on the first stage's topic.

    Its id and its seed follow from tenant and request id, so that twice the same request is the
    same picture twice, under one id.
    """

    def __init__(self, settings: KafkaSettings, codec: Codec, claims: Claims) -> None:
        super().__init__(Names(settings, JOBS), codec, claims)
        self._first = Names(settings, ROUTE[0])

    async def handle(self, received: Received) -> Sequence[Message]:
        """Check it as the pipeline would, and send it on its way."""
        asked = await self.read(received)
        check_options(asked.options)
        name = hashlib.sha256(f"{received.tenant}\0{asked.request_id}".encode())
        options = asked.options
        if options.seed is None:
            options = replace(options, seed=int.from_bytes(name.digest()[-8:]) >> 1)
        if options.true_cfg_scale is not None and options.true_cfg_scale <= 1:
            options = replace(options, negative_prompt=None)
        kinds = [PayloadKind.PERSON_IMAGE, *[PayloadKind.GARMENT_IMAGE] * (len(asked.pictures) - 1)]
        contents = await self._claims.pack(asked.pictures)
        record = {
            "request_id": asked.request_id,
            "options": options_record(options),
            "payloads": [
                {"kind": kind.value, "tensor": None, "image": {"format": None}, "content": content}
                for kind, content in zip(kinds, contents, strict=True)
            ],
            "route": list(ROUTE[1:]),
            "job_id": name.hexdigest()[:32],
            "hops": [],
            "labels": dict(asked.labels),
        }
        headers, key = received.passed_on(), asked.request_id.encode()
        if asked.timeout_seconds is not None:
            deadline = datetime.now(UTC) + timedelta(seconds=asked.timeout_seconds)
            headers[DEADLINE] = deadline.isoformat().encode()
        request = self._codec.encode(STAGE_REQUEST, record)
        return [
            chain_event(self.names, self._codec, record, _WAITING, JobState.QUEUED, headers),
            Message(self._first.requests, key, request, headers),
        ]


def chain_event(
    names: Names,
    codec: Codec,
    record: Mapping[str, Any],
    number: int,
    state: JobState,
    headers: Mapping[str, bytes],
    error: VtryonError | None = None,
) -> Message:
    """Make the event of a job that goes from stage to stage."""
    event = event_record(
        record["request_id"],
        record["job_id"],
        number,
        datetime.now(UTC),
        state,
        attempts=0 if number == _WAITING else 1,
        error=error,
        labels=record["labels"],
    )
    return Message(names.events, record["request_id"].encode(), codec.encode(EVENT, event), headers)


class StageWork:
    """Does the work of one stage, by a call of its service."""

    def __init__(
        self,
        stage: str,
        settings: KafkaSettings,
        codec: Codec,
        claims: Claims,
        sender: Sender,
        client: Client,
    ) -> None:
        self.names = Names(settings, stage)
        self._stage = stage
        self._kind = KINDS[stage]
        self._settings = settings
        self._jobs = Names(settings, JOBS)
        self._codec = codec
        self._claims = claims
        self._sender = sender
        self._client = client

    async def handle(self, received: Received) -> Sequence[Message]:
        """Call the stage, and pass its result on.

        Raises:
            VtryonError: it failed.
        """
        record = await self._codec.decode(STAGE_REQUEST, received.value)
        check_request_id(record["request_id"])
        _check_route(self._stage, record["route"])
        left = received.left_seconds(self._settings.work_timeout_seconds)
        if left <= 0:
            raise DeadlineError(f"out of time before {self._stage} began")
        given = await self._given(record["payloads"])
        headers = received.passed_on()
        if record["job_id"] and self._stage == ROUTE[0]:
            begun = chain_event(self._jobs, self._codec, record, _BEGUN, JobState.RUNNING, headers)
            await self._sender.send([begun])
        result = await self._call(received, record, given, left)
        hops = result.finished.ledger.hops if result.finished.ledger else ()
        record["hops"] = [*record["hops"], *hop_records(hops)]
        return await self._passed_on(record, result, headers)

    async def _given(self, payloads: Sequence[Mapping[str, Any]]) -> list[Outgoing]:
        given, room = [], self._settings.max_payload_bytes
        for number, one in enumerate(payloads):
            if read_payload(one, 0).kind not in self._kind.takes:
                continue
            data = await self._claims.unpack(f"payloads.{number}", one["content"], room)
            room -= len(data)
            payload = read_payload(one, len(data))
            if payload.kind in _PICTURES:
                payload = replace(payload, kind=PayloadKind.IMAGE)
            given.append(Outgoing(payload, data))
        return given

    async def _call(
        self,
        received: Received,
        record: Mapping[str, Any],
        given: Sequence[Outgoing],
        left_seconds: float,
    ) -> Result:
        options = read_options(record["options"])
        options = replace(options, priority=_priority(received))
        said = given[:2][-1].data if given and self._kind.takes == _PICTURES else b""
        assert isinstance(said, bytes)
        content = await asyncio.to_thread(digest, said) if said else ""

        async def open_call() -> StreamCall:
            return StreamCall(
                self._client.acting_for(received.tenant).channel,
                self._kind.method,
                self._kind.start(options, [one.payload for one in given]),
                given,
                timeout_seconds=min(left_seconds, self._settings.work_timeout_seconds),
                request_id=record["request_id"],
                content_digest=content,
            )

        return await Run(open_call, lambda result: result)

    async def _passed_on(
        self, record: dict[str, Any], result: Result, headers: Mapping[str, bytes]
    ) -> Sequence[Message]:
        route, key = record["route"], record["request_id"].encode()
        if route == [JOBS]:
            return await self._response(record, result, headers)
        kept = record["payloads"] if route else []
        inline = sum(len(one["content"]["inline"] or b"") for one in kept)
        contents = await self._claims.pack(result.buffers, taken_bytes=inline)
        made = [
            payload_record(replace(one, kind=self._kind.named(one.kind, route)), content)
            for one, content in zip(result.payloads, contents, strict=True)
        ]
        if not route:
            value = self._stage_response(record, payloads=made)
            return [Message(self.names.responses, key, value, headers)]
        following = {**record, "payloads": [*kept, *made], "route": route[1:]}
        request = self._codec.encode(STAGE_REQUEST, following)
        return [Message(Names(self._settings, route[0]).requests, key, request, headers)]

    async def _response(
        self, record: Mapping[str, Any], result: Result, headers: Mapping[str, bytes]
    ) -> Sequence[Message]:
        picture = result.picture()
        [content] = await self._claims.pack([picture.data])
        response = response_record(
            record["request_id"],
            record["job_id"] or "",
            JobState.SUCCEEDED,
            picture=picture_record(picture.image, content),
            seed=record["options"]["seed"],
            attempts=1,
            hops=record["hops"],
            wall_seconds=sum(
                one["queue_seconds"] + one["transfer_seconds"] + one["compute_seconds"]
                for one in record["hops"]
            ),
            labels=record["labels"],
        )
        return [
            *self._ended(record, JobState.SUCCEEDED, headers),
            self._job_response(record, response, headers),
        ]

    async def failed(self, received: Received, error: VtryonError) -> Sequence[Message]:
        """Answer that there will be no result; nobody can be told of what can't be read."""
        try:
            record = await self._codec.decode(STAGE_REQUEST, received.value)
        except ProtocolError:
            return []
        headers = {**received.passed_on(), REASON: str(error.reason or "").encode()}
        if record["route"][-1:] != [JOBS]:
            value = self._stage_response(record, error=error)
            return [Message(self.names.responses, record["request_id"].encode(), value, headers)]
        response = response_record(
            record["request_id"],
            record["job_id"] or "",
            JobState.FAILED,
            error=error,
            seed=record["options"]["seed"],
            attempts=1,
            hops=record["hops"],
            labels=record["labels"],
        )
        return [
            *self._ended(record, JobState.FAILED, headers, error),
            self._job_response(record, response, headers),
        ]

    def _ended(
        self,
        record: Mapping[str, Any],
        state: JobState,
        headers: Mapping[str, bytes],
        error: VtryonError | None = None,
    ) -> list[Message]:
        if not record["job_id"]:
            return []
        return [chain_event(self._jobs, self._codec, record, _ENDED, state, headers, error)]

    def _job_response(
        self, record: Mapping[str, Any], response: Mapping[str, Any], headers: Mapping[str, bytes]
    ) -> Message:
        value = self._codec.encode(RESPONSE, response)
        return Message(self._jobs.responses, record["request_id"].encode(), value, headers)

    def _stage_response(
        self,
        record: Mapping[str, Any],
        *,
        payloads: Sequence[Mapping[str, Any]] = (),
        error: VtryonError | None = None,
    ) -> bytes:
        response = {
            "request_id": record["request_id"],
            "stage": self._stage,
            "payloads": list(payloads),
            "error": None if error is None else error_record(error),
            "hops": record["hops"],
            "labels": record["labels"],
        }
        return self._codec.encode(STAGE_RESPONSE, response)


def again_from(record: Mapping[str, Any], at: str, stage: str) -> dict[str, Any]:
    """Make the request for an earlier stage of a try-on that came to `at`.

    Raises:
        RequestError: the stage is not before it, or the request is no try-on's.
    """
    way = list(ROUTE)
    if list(record["route"]) != way[way.index(at) + 1 :]:
        raise RequestError("only a try-on goes on from another stage; this was for one alone")
    if stage not in way or way.index(stage) > way.index(at):
        earlier = ", ".join(way[: way.index(at) + 1])
        raise RequestError(f"from_stage: this one may go on from {earlier}")
    later = way[way.index(stage) : way.index(at)]
    made = {kind.value for name in later for kind in KINDS[name].gives}
    return {
        **record,
        "payloads": [one for one in record["payloads"] if one["kind"] not in made],
        "route": way[way.index(stage) + 1 :],
        "hops": [one for one in record["hops"] if one["stage"] not in later],
    }


def _check_route(stage: str, route: Sequence[str]) -> None:
    way = list(ROUTE)
    behind = way[way.index(stage) + 1 :]
    if list(route) != behind[: len(route)]:
        raise RequestError(f"route: behind {stage} come {', '.join(behind)}, in this order")


def _priority(received: Received) -> Priority:
    try:
        return Priority(received.header(PRIORITY) or Priority.BATCH)
    except ValueError:
        raise RequestError(f"header {PRIORITY}: takes {' or '.join(Priority)}") from None
