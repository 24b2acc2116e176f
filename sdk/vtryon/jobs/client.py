"""`Jobs`: the client of try-ons that outlive their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, Unpack

from google.protobuf.message import Message

from vtryon import events
from vtryon.arguments import check_timeout, sequence
from vtryon.errors import DeadlineError, ProtocolError, Reason, UnavailableError
from vtryon.events import Chunk, Event, Output
from vtryon.jobs.types import (
    JOB_SERVICE,
    CancelJob,
    CreateJobStart,
    EraseJob,
    FetchPicture,
    GetJob,
    Job,
    JobPage,
    JobState,
    JobUpdate,
    ListJobs,
    WatchJob,
)
from vtryon.messages import ProtoType, request_message
from vtryon.options import DEFAULT_PROMPT, TryOnArguments, make_options, outgoing_pictures
from vtryon.pictures import Picture
from vtryon.v1 import job_pb2, stream_pb2
from vtryon.wire.channel import Channel
from vtryon.wire.framing import REQUEST_TAG, write_chunk
from vtryon.wire.grammar import Responses
from vtryon.wire.headers import check_request_id
from vtryon.wire.payloads import Assembler, Outgoing, chunks
from vtryon.wire.unary import ask, listen

if TYPE_CHECKING:
    from vtryon.pictures import PictureSource
    from vtryon.types import TryOnOptions

_BREAKS = 5
_FIRST_PAUSE_SECONDS = 0.1


class Jobs:
    """The jobs of a mesh; `vtryon.Client.jobs` gives it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def create(
        self,
        person: PictureSource,
        garment: PictureSource | Sequence[PictureSource] | None = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        options: TryOnOptions | None = None,
        request_id: str = "",
        timeout_seconds: float | None = None,
        labels: Mapping[str, str] | None = None,
        correlation_id: bytes = b"",
        **arguments: Unpack[TryOnArguments],
    ) -> Job:
        """Create a job, or return the existing one with the same request id.

        Args:
            person: a path, the bytes of a PNG, JPEG or WebP file, an open binary file, a PIL image,
                an array of uint8, or a `Picture`.
            garment: the same, or a sequence of up to three.
            prompt: the instruction; "picture 1" is the person and "picture 2" the garment.
            options: the prompt and all options as one value; excludes `prompt` and `arguments`.
                Unset in it, the prompt is empty and there are no previews.
            request_id: idempotency key of the job.
            timeout_seconds: deadline of the job, including queueing and all attempts.
            labels: metadata to store with the job.
            correlation_id: opaque id of your own system, copied to Kafka messages about the job.
            **arguments: steps, seed, width, height and so on: `vtryon.options.TryOnArguments`.

        Raises:
            RequestError: the request is invalid, or its id belongs to another request
                (ALREADY_EXISTS).
            TypeError: there is no option of that name.
        """
        check_timeout(timeout_seconds)
        if request_id != "":
            check_request_id(request_id)
        chosen = make_options(options, prompt=prompt, **arguments)
        outgoing = await outgoing_pictures(person, garment)
        start = CreateJobStart(
            payloads=tuple(one.payload for one in outgoing),
            options=chosen,
            request_id=request_id,
            timeout_seconds=timeout_seconds,
            labels={} if labels is None else labels,
            correlation_id=correlation_id,
        )
        first: Any = request_message(start)
        message = job_pb2.CreateJobRequest(start=first)
        return await ask(
            self._channel,
            f"{JOB_SERVICE}CreateJob",
            lambda: _requests(message, outgoing),
            Job,
            idempotent=bool(request_id),
        )

    async def get(self, job_id: str) -> Job:
        """Give a job as it is now.

        Raises:
            RequestError: NOT_FOUND.
        """
        return await ask(self._channel, f"{JOB_SERVICE}GetJob", GetJob(job_id), Job)

    async def page(
        self, *, states: Sequence[JobState] = (), size: int = 0, token: str = ""
    ) -> JobPage:
        """Give a page of jobs, the newest first."""
        wanted = ListJobs(sequence("states", states, "job states"), size, token)
        return await ask(self._channel, f"{JOB_SERVICE}ListJobs", wanted, JobPage)

    async def list(self, *, states: Sequence[JobState] = ()) -> AsyncIterator[Job]:
        """Give all jobs, the newest first, page by page."""
        token = ""
        while True:
            page = await self.page(states=states, token=token)
            for job in page.jobs:
                yield job
            if not (token := page.next_page_token):
                return

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, and erase its pictures and prompts; one that has ended stays as it is.

        Raises:
            RequestError: NOT_FOUND.
        """
        return await ask(self._channel, f"{JOB_SERVICE}CancelJob", CancelJob(job_id), Job)

    async def erase(self, job_id: str) -> Job:
        """Cancel a job, and erase its pictures and prompts.

        The job that comes back is `erased`, or still `erasing` where it has not ended yet or the
        storage is away; the server goes on by itself.

        Raises:
            RequestError: NOT_FOUND.
        """
        return await ask(self._channel, f"{JOB_SERVICE}EraseJob", EraseJob(job_id), Job)

    async def watch(
        self, job_id: str, *, from_sequence: int = 0
    ) -> AsyncGenerator[JobUpdate, None]:
        """Yield the updates of a job from a sequence number on, until the job has ended.

        After a broken connection, it continues with the next update.

        Raises:
            RequestError: the job does not exist (NOT_FOUND).
            UnavailableError: the connection broke several times in a row.
        """
        request_message(WatchJob(job_id, from_sequence))  # refuses now what could not be sent
        following, breaks = max(1, from_sequence), 0
        while True:
            asked = WatchJob(job_id, following)
            try:
                updates = listen(self._channel, f"{JOB_SERVICE}WatchJob", asked, JobUpdate)
                async with aclosing(updates):
                    async for update in updates:
                        following, breaks = update.sequence + 1, 0
                        yield update
                return
            except DeadlineError:
                continue  # the server's own, for calls without one
            except UnavailableError:
                breaks += 1
                if breaks > _BREAKS:
                    raise
                await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2**breaks)

    async def wait(self, job_id: str) -> Job:
        """Wait until a job has ended, and give it as it is then.

        Raises:
            RequestError: NOT_FOUND.
        """
        async for _ in self.watch(job_id):
            pass
        return await self.get(job_id)

    async def picture(self, job_id: str) -> Picture:
        """Download the picture of a job that succeeded.

        Raises:
            RequestError: the job does not exist, has no picture, or its picture was erased
                (NOT_FOUND).
            ProtocolError: STREAM_INCOMPLETE, the server closed the stream early.
        """
        asked, grammar, assembler = FetchPicture(job_id), Responses(), Assembler(())
        async for reply in listen(self._channel, f"{JOB_SERVICE}FetchPicture", asked, _Reply):
            grammar.event(reply.event)
            if isinstance(reply.event, Output):
                assembler = Assembler(reply.event.payloads)
            elif isinstance(reply.event, Chunk):
                assembler.add(reply.event)
        if not grammar.ended or len(assembler.payloads) != 1:
            words = f"the picture of job {job_id} did not arrive completely"
            raise ProtocolError(words, reason=Reason.STREAM_INCOMPLETE)
        return Picture(assembler.payloads[0].image, bytes(assembler.buffers[0]))


@dataclass(frozen=True, slots=True)
class _Reply(ProtoType):
    """An event as the answer of a call."""

    proto = stream_pb2.Event
    event: Event

    @classmethod
    def from_proto(cls, message: Any) -> Self:
        return cls(events.from_proto(message))


async def _requests(first: Message, outgoing: Sequence[Outgoing]) -> AsyncIterator[bytes]:
    yield first.SerializeToString()
    async for chunk in chunks(outgoing):
        yield write_chunk(REQUEST_TAG, chunk.payload, chunk.offset, chunk.data)
