"""Whole jobs over Kafka: requests become jobs, and outcomes of jobs are published."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
from opentelemetry import context, propagate

from vtryon.client import Client
from vtryon.errors import DeadlineError, ProtocolError, RequestError, VtryonError
from vtryon.jobs import Job, JobState
from vtryon.jobs.outbox import JobOutcome, Outcomes
from vtryon.types import MAX_GARMENTS, MAX_PICTURE_BYTES, TryOnOptions
from vtryon.wire.call_status import is_being_cancelled
from vtryon.wire.channel import TENANT_KEY
from vtryon_services.bridges.kafka.claims import ClaimStore
from vtryon_services.bridges.kafka.conversions import (
    answerable,
    error_record,
    event_record,
    fit_records,
    hop_records,
    picture_record,
    read_options,
    seed_record,
    unused_records,
)
from vtryon_services.bridges.kafka.messages import (
    CAUSATION,
    CORRELATION,
    REASON,
    TRACE,
    Message,
    ReceivedMessage,
)
from vtryon_services.bridges.kafka.records import JobRequestRecord, JobResponseRecord
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.topics import Names
from vtryon_services.validation.declarations import payload_invalid
from vtryon_services.validation.ranges import check_labels, check_options, check_request_id

_log = structlog.get_logger("vtryon.kafka")
_PAUSE_SECONDS = 0.5
# So many pictures are held at once.
_OUTCOMES, _WAIT_SECONDS = 16, 5.0


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A try-on as a message asks for it."""

    request_id: str
    pictures: Sequence[bytes]
    options: TryOnOptions
    timeout_seconds: float | None
    labels: Mapping[str, str]
    person_claim: str  # the object that the person's picture is in; empty where it was inline


class JobRequests:
    """Reads requests, and answers those that are refused."""

    def __init__(self, names: Names, codec: Codec, claims: ClaimStore) -> None:
        self.names = names
        self._codec = codec
        self._claims = claims

    async def read(self, received: ReceivedMessage) -> JobRequest:
        """Read a request with its pictures.

        Raises:
            VtryonError: it does not hold, or its time is over.
        """
        record = await self._codec.decode(JobRequestRecord, received.value)
        received.check_headers()
        check_request_id(record.request_id)
        check_labels(record.labels)
        garments = record.garments
        if len(garments) > MAX_GARMENTS:
            raise payload_invalid(f"garments: {len(garments)}, and {MAX_GARMENTS} are the most")
        timeout = record.timeout_seconds
        left = received.left_seconds(math.inf if timeout is None else timeout)
        if left <= 0:
            raise DeadlineError("out of time before it was begun")
        contents = [("person", record.person)]
        contents += [(f"garments.{number}", one) for number, one in enumerate(garments)]
        pictures = [
            await self._claims.unpack(field, content, MAX_PICTURE_BYTES)
            for field, content in contents
        ]
        claim = record.person.claim
        return JobRequest(
            record.request_id,
            pictures,
            read_options(record.options),
            None if left == math.inf else left,
            record.labels,
            claim.name if claim else "",
        )

    async def failed(self, received: ReceivedMessage, error: VtryonError) -> Sequence[Message]:
        """Build the response that there will be no picture; unreadable requests get none."""
        try:
            record = await self._codec.decode(JobRequestRecord, received.value)
        except ProtocolError:
            return []
        record = answerable(record)
        response = JobResponseRecord(
            request_id=record.request_id,
            state=JobState.FAILED.name,
            error=error_record(error),
            labels=record.labels,
        )
        key, value = record.request_id.encode(), self._codec.encode(response)
        return [Message(self.names.responses, key, value, received.refused(error))]


class StoredJobs(JobRequests):
    """The topology `hybrid`: a request becomes a job of the store, durable before it is done."""

    def __init__(self, names: Names, codec: Codec, claims: ClaimStore, client: Client) -> None:
        super().__init__(names, codec, claims)
        self._client = client

    async def handle(self, received: ReceivedMessage) -> Sequence[Message]:
        """Make the job; twice the same request is one job."""
        asked = await self.read(received)
        check_options(asked.options)
        jobs = self._client.acting_for(received.tenant).jobs
        job = await jobs.create(
            asked.pictures[0],
            list(asked.pictures[1:]),
            options=replace(asked.options, previews=None, priority=received.priority),
            request_id=asked.request_id,
            timeout_seconds=asked.timeout_seconds,
            labels=asked.labels,
            correlation_id=received.headers.get(CORRELATION, b""),
        )
        if asked.person_claim:
            await self._claims.assign(asked.person_claim, job.id)
            if (await jobs.get(job.id)).erased:  # before the claim was noted
                await self._claims.erase(job.id)
        return []


class OutboxPublisher:
    """Publishes the outcomes of all jobs: each change, and each end with its picture.

    Messages published twice after a crash are identical: job id and sequence detect them.
    """

    def __init__(
        self, names: Names, codec: Codec, claims: ClaimStore, sender: Sender, client: Client
    ) -> None:
        self._names = names
        self._codec = codec
        self._claims = claims
        self._sender = sender
        self._client = client
        self._outcomes = Outcomes(client.channel, uuid.uuid4().hex)
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let another bridge go on."""
        if self._loop is None:
            return
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        try:
            await self._outcomes.give_back()
        except VtryonError as error:  # it ends by itself
            _log.info("the turn could not be given back", reason=error.reason)

    async def _run(self) -> None:
        published: list[int] = []
        while True:
            try:
                taken = await self._outcomes.take(
                    published, most=_OUTCOMES, wait_seconds=_WAIT_SECONDS
                )
                published = []
                messages = await asyncio.gather(*map(self._messages, taken))
                await self._sender.send([message for several in messages for message in several])
                for one in taken:  # behind what was packed of the same job
                    if (job := one.update.job if one.update else None) and job.erased:
                        await self._claims.erase(job.id)
                published = [one.id for one in taken]
            except VtryonError as error:
                _log.warning("outcomes could not be published", reason=error.reason)
                await asyncio.sleep(_PAUSE_SECONDS)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                    raise
                _log.exception("outcomes could not be published")
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _messages(self, outcome: JobOutcome) -> list[Message]:
        update = outcome.update
        assert update is not None
        job = update.job
        assert job is not None
        if job.erased:
            return []  # what was kept of it is deleted, and its end was published before
        trace = {name: getattr(outcome, name) for name in TRACE}
        context.attach(propagate.extract(trace))  # this task's own
        headers = {
            CORRELATION: outcome.correlation_id or job.request_id.encode(),
            CAUSATION: job.id.encode(),
            TENANT_KEY: outcome.tenant.encode(),
            **{name: value.encode() for name, value in trace.items()},
        }
        headers = {name: value for name, value in headers.items() if value}
        if job.error is not None:
            headers[REASON] = str(job.error.reason or "").encode()
        key = job.request_id.encode()
        event = self._codec.encode(event_record(update))
        messages = [Message(self._names.events, key, event, headers)]
        if job.ended:
            response = await self._response(outcome.tenant, job)
            value = self._codec.encode(response)
            messages.append(Message(self._names.responses, key, value, headers))
        return messages

    async def _response(self, tenant: str, job: Job) -> JobResponseRecord:
        assert job.state is not None
        jobs, picture, seed = self._client.acting_for(tenant).jobs, None, None
        try:
            now = await jobs.get(job.id)
            seed = now.options.seed if now.options else None
            if job.state is JobState.SUCCEEDED:
                found = await jobs.picture(job.id)
                [content] = await self._claims.pack([found.data], job_id=job.id)
                picture = picture_record(found.image, content)
        except RequestError as error:  # erased in the meantime
            _log.info("a picture is gone", job=job.id, reason=error.reason)
        return JobResponseRecord(
            job_id=job.id,
            request_id=job.request_id,
            state=job.state.name,
            picture=picture,
            error=error_record(job.error),
            seed=seed_record(seed),
            attempts=job.attempts,
            wall_seconds=job.ledger.wall_seconds if job.ledger else None,
            hops=hop_records(job.ledger.hops if job.ledger else ()),
            labels=job.labels,
            unused_options=unused_records(job.unused_options),
            fits=fit_records(job.fits),
            model_digests=job.model_digests,
        )
