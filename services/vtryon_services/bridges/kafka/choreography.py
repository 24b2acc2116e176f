"""Jobs of the topology `kafka`: how they start, and the events that report their progress."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from vtryon.catalog import JOBS
from vtryon.errors import VtryonError
from vtryon.files.jsonable import plain
from vtryon.jobs import JobState
from vtryon.seeds import derive_seed
from vtryon.types import PayloadKind, TryOnOptions, settled
from vtryon_services.bridges.kafka.claims import ClaimStore
from vtryon_services.bridges.kafka.jobs import EVENT, RESPONSE, JobRequests
from vtryon_services.bridges.kafka.messages import DEADLINE, Message, ReceivedMessage
from vtryon_services.bridges.kafka.records import (
    event_record,
    options_record,
    read_options,
    response_record,
)
from vtryon_services.bridges.kafka.route import ROUTE
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names
from vtryon_services.validation.ranges import check_options
from vtryon_services.validation.unused import unused_of_try_on

STAGE_REQUEST = "stage_request"
# Of a job's events, which are no more than these three.
_NUMBERS = {JobState.QUEUED: 1, JobState.RUNNING: 2, JobState.SUCCEEDED: 3, JobState.FAILED: 3}


class Choreography:
    """Tells of jobs that go from stage to stage; a job is known by its stage request's record."""

    def __init__(self, settings: KafkaSettings, codec: Codec) -> None:
        self.names = Names(settings, JOBS)
        self._codec = codec

    def event(
        self,
        record: Mapping[str, Any],
        state: JobState,
        headers: Mapping[str, bytes],
        error: VtryonError | None = None,
    ) -> Message:
        """Tell of a new state."""
        event = event_record(
            record["request_id"],
            record["job_id"],
            _NUMBERS[state],
            datetime.now(UTC),
            state,
            attempts=0 if state is JobState.QUEUED else 1,
            error=error,
            labels=record["labels"],
        )
        value = self._codec.encode(EVENT, event)
        return Message(self.names.events, record["request_id"].encode(), value, headers)

    def end(
        self,
        record: Mapping[str, Any],
        headers: Mapping[str, bytes],
        *,
        picture: Mapping[str, Any] | None = None,
        error: VtryonError | None = None,
    ) -> list[Message]:
        """Tell of the end: a picture, or an error."""
        state = JobState.FAILED if picture is None else JobState.SUCCEEDED
        seconds = ("queue_seconds", "transfer_seconds", "compute_seconds")
        wall_seconds = sum(hop[name] for hop in record["hops"] for name in seconds)
        response = response_record(
            record["request_id"],
            record["job_id"] or "",
            state,
            picture=picture,
            error=error,
            seed=read_options(record["options"]).seed,
            attempts=1,
            wall_seconds=None if picture is None else wall_seconds,
            hops=record["hops"],
            labels=record["labels"],
            unused_options=record["unused_options"],
            fits=record["fits"],
            model_digests=record["model_digests"],
        )
        value = self._codec.encode(RESPONSE, response)
        answer = Message(self.names.responses, record["request_id"].encode(), value, headers)
        if not record["job_id"]:  # somebody's own request, which goes the last of the way
            return [answer]
        return [self.event(record, state, headers, error), answer]


class ChoreographedJobs(JobRequests):
    """Puts a request on the first stage's topic.

    Its job id and seed are derived from tenant and request id, so that equal requests yield equal
    pictures under one id. The claim-check store keeps the digest of an id's request as long as
    claims: until then, a different request with the same id is rejected as ALREADY_EXISTS.
    """

    def __init__(self, settings: KafkaSettings, codec: Codec, claims: ClaimStore) -> None:
        self._chain = Choreography(settings, codec)
        super().__init__(self._chain.names, codec, claims)
        self._first = Names(settings, ROUTE[0])

    async def handle(self, received: ReceivedMessage) -> Sequence[Message]:
        """Check it as the pipeline would, and send it on its way."""
        asked = await self.read(received)
        check_options(asked.options)
        name = hashlib.sha256(f"{received.tenant}\0{asked.request_id}".encode())
        given = asked.options
        unused = unused_of_try_on(given)
        options = settled(given, derive_seed(name.digest()))
        kinds = [PayloadKind.PERSON_IMAGE, *[PayloadKind.GARMENT_IMAGE] * (len(asked.pictures) - 1)]
        job_id = name.hexdigest()[:32]
        digest = await asyncio.to_thread(_digest, asked.options, asked.pictures)
        await self._claims.reserve(job_id, digest)
        contents = await self._claims.pack(asked.pictures)
        record = {
            "request_id": asked.request_id,
            "options": options_record(options),
            "payloads": [
                {"kind": kind.value, "tensor": None, "image": {"format": None}, "content": content}
                for kind, content in zip(kinds, contents, strict=True)
            ],
            "route": list(ROUTE[1:]),
            "job_id": job_id,
            "hops": [],
            "labels": dict(asked.labels),
            "unused_options": plain(unused),
            "fits": [],
            "model_digests": {},
        }
        headers, key = received.passed_on(), asked.request_id.encode()
        if asked.timeout_seconds is not None:
            deadline = datetime.now(UTC) + timedelta(seconds=asked.timeout_seconds)
            headers[DEADLINE] = deadline.isoformat().encode()
        request = self._codec.encode(STAGE_REQUEST, record)
        return [
            self._chain.event(record, JobState.QUEUED, headers),
            Message(self._first.requests, key, request, headers),
        ]


def _digest(options: TryOnOptions, pictures: Sequence[bytes]) -> str:
    """Compute the digest of everything that affects the result."""
    whole = hashlib.sha256(options.to_proto().SerializeToString(deterministic=True))
    for picture in pictures:
        whole.update(len(picture).to_bytes(8, "big"))
        whole.update(picture)
    return whole.hexdigest()
