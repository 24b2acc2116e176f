"""Jobs of the topology `kafka`: how they start, and the events that report their progress."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from vtryon.catalog import JOBS
from vtryon.errors import VtryonError
from vtryon.jobs import JobState
from vtryon.seeds import derive_seed
from vtryon.types import PayloadKind, TryOnOptions, settled
from vtryon_services.bridges.kafka.claims import ClaimStore
from vtryon_services.bridges.kafka.conversions import (
    answered_seed,
    error_record,
    options_record,
    unused_records,
)
from vtryon_services.bridges.kafka.jobs import JobRequests
from vtryon_services.bridges.kafka.messages import DEADLINE, Message, ReceivedMessage
from vtryon_services.bridges.kafka.records import (
    ImageRecord,
    JobEventRecord,
    JobResponseRecord,
    PayloadRecord,
    PictureRecord,
    StageRequestRecord,
)
from vtryon_services.bridges.kafka.route import ROUTE
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names
from vtryon_services.validation.ranges import check_options
from vtryon_services.validation.unused import unused_of_try_on

# Sequence numbers of a job's events: there are no more than these three.
_NUMBERS = {JobState.QUEUED: 1, JobState.RUNNING: 2, JobState.SUCCEEDED: 3, JobState.FAILED: 3}


class Choreography:
    """Makes the events and responses of jobs that go from stage to stage."""

    def __init__(self, settings: KafkaSettings, codec: Codec) -> None:
        self.names = Names(settings, JOBS)
        self._codec = codec

    def event(
        self,
        record: StageRequestRecord,
        state: JobState,
        headers: Mapping[str, bytes],
        error: VtryonError | None = None,
    ) -> Message:
        """Make the event of a new state of a job."""
        event = JobEventRecord(
            job_id=record.job_id or "",
            request_id=record.request_id,
            sequence=_NUMBERS[state],
            at=datetime.now(UTC),
            state=state.name,
            attempts=0 if state is JobState.QUEUED else 1,
            error=error_record(error),
            labels=record.labels,
        )
        key, value = record.request_id.encode(), self._codec.encode(event)
        return Message(self.names.events, key, value, headers)

    def end(
        self,
        record: StageRequestRecord,
        headers: Mapping[str, bytes],
        *,
        picture: PictureRecord | None = None,
        error: VtryonError | None = None,
    ) -> list[Message]:
        """Make the response with a picture or an error, and the event of the end."""
        state = JobState.FAILED if picture is None else JobState.SUCCEEDED
        wall_seconds = sum(hop.total_seconds for hop in record.hops)
        response = JobResponseRecord(
            job_id=record.job_id or "",
            request_id=record.request_id,
            state=state.name,
            picture=picture,
            error=error_record(error),
            seed=answered_seed(record.options),
            attempts=1,
            wall_seconds=None if picture is None else wall_seconds,
            hops=record.hops,
            labels=record.labels,
            unused_options=record.unused_options,
            fits=record.fits,
            model_digests=record.model_digests,
        )
        key, value = record.request_id.encode(), self._codec.encode(response)
        answer = Message(self.names.responses, key, value, headers)
        if not record.job_id:  # a client's own request, for the last stages alone
            return [answer]
        return [self.event(record, state, headers, error), answer]


class ChoreographedJobs(JobRequests):
    """Puts a request on the first stage's topic.

    Its job id and seed are derived from tenant and request id, so that equal requests yield equal
    pictures under one id. The claim-check store keeps the digest of an id's request as long as
    claims: until then, a different request with the same id is rejected as ALREADY_EXISTS.
    """

    def __init__(self, settings: KafkaSettings, codec: Codec, claims: ClaimStore) -> None:
        self._choreography = Choreography(settings, codec)
        super().__init__(self._choreography.names, codec, claims)
        self._first = Names(settings, ROUTE[0])

    async def handle(self, received: ReceivedMessage) -> Sequence[Message]:
        """Check the request as the pipeline would, and make that of the first stage."""
        asked = await self.read(received)
        check_options(asked.options)
        name = hashlib.sha256(f"{received.tenant}\0{asked.request_id}".encode())
        options = settled(asked.options, derive_seed(name.digest()))
        kinds = [PayloadKind.PERSON_IMAGE, *[PayloadKind.GARMENT_IMAGE] * (len(asked.pictures) - 1)]
        job_id = name.hexdigest()[:32]
        digest = await asyncio.to_thread(_digest, asked.options, asked.pictures)
        await self._claims.reserve(job_id, digest)
        contents = await self._claims.pack(asked.pictures)
        record = StageRequestRecord(
            request_id=asked.request_id,
            options=options_record(options),
            payloads=tuple(
                PayloadRecord(kind=kind, image=ImageRecord(), content=content)
                for kind, content in zip(kinds, contents, strict=True)
            ),
            route=ROUTE[1:],
            job_id=job_id,
            labels=asked.labels,
            unused_options=unused_records(unused_of_try_on(asked.options)),
        )
        headers, key = received.passed_on(), asked.request_id.encode()
        if asked.timeout_seconds is not None:
            deadline = datetime.now(UTC) + timedelta(seconds=asked.timeout_seconds)
            headers[DEADLINE] = deadline.isoformat().encode()
        request = self._codec.encode(record)
        return [
            self._choreography.event(record, JobState.QUEUED, headers),
            Message(self._first.requests, key, request, headers),
        ]


def _digest(options: TryOnOptions, pictures: Sequence[bytes]) -> str:
    """Compute the digest of everything that affects the result."""
    whole = hashlib.sha256(options.to_proto().SerializeToString(deterministic=True))
    for picture in pictures:
        whole.update(len(picture).to_bytes(8, "big"))
        whole.update(picture)
    return whole.hexdigest()
