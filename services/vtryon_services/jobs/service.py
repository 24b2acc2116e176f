"""Jobs on the wire."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

import structlog
from opentelemetry import metrics

from vtryon import events
from vtryon.catalog import JOBS
from vtryon.client import Client
from vtryon.errors import OverloadedError
from vtryon.events import Event, Finished
from vtryon.jobs import (
    CancelJob,
    CreateJobStart,
    EraseJob,
    FetchPicture,
    GetJob,
    ListJobs,
    WatchJob,
)
from vtryon.types import MAX_GARMENTS, PayloadKind, Stage, TryOnOptions
from vtryon.v1 import job_pb2
from vtryon.wire.payloads import outgoing_image
from vtryon.wire.retry import FOR_SERVICES
from vtryon_services.jobs.database import open_database
from vtryon_services.jobs.eraser import Eraser
from vtryon_services.jobs.making import Maker
from vtryon_services.jobs.notifier import OUTCOMES, WORK, Notifier
from vtryon_services.jobs.origin import LONGEST_CORRELATION_ID
from vtryon_services.jobs.outcomes import outcome_service
from vtryon_services.jobs.records import Kept
from vtryon_services.jobs.runner import Runner
from vtryon_services.jobs.seals import Seals
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.jobs.store import UPDATES_AT_ONCE, JobStore, StoreLimits
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.call import Call, Incoming, accepted, send_output
from vtryon_services.rpc.method import Method, Replies, Serve
from vtryon_services.runtime.pace import Pace
from vtryon_services.storage.artifacts import Artifacts
from vtryon_services.storage.artifacts import located as artifacts_located
from vtryon_services.validation.declarations import check_pictures
from vtryon_services.validation.ranges import (
    check_labels,
    check_options,
    check_request_id,
    field_error,
)

_log = structlog.get_logger("vtryon.jobs")
_watches = metrics.get_meter("vtryon").create_up_down_counter(
    "vtryon.jobs.watches", description="WatchJob calls that are open."
)
_NAME = "vtryon.v1.JobService"
_LONGEST_SECONDS = 30 * 86_400.0
_CANCEL_SECONDS = 5.0
_WATCH_AGAIN_SECONDS = 1.0
_WATCH_BURST_SECONDS = 0.25
_PAGE, _LARGEST_PAGE, _LISTS_AT_ONCE = 100, 1000, 4
_LISTED_PER_SECOND, _LIST_BURST_SECONDS = 1000, 1.0  # jobs in the pages of one tenant
_LAST_SEQUENCE = 2**63 - 1


async def make_services(settings: JobsSettings) -> list[Service]:
    """Open store and artifacts, and begin to run jobs.

    Raises:
        SettingsError: one of them can't be used.
    """
    folder = settings.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    artifacts = Artifacts.open(artifacts_located(settings.artifacts_url, folder))
    database = await open_database(settings.database_url, folder)
    _log.info("jobs are kept", data_folder=str(folder))
    limits = StoreLimits(
        settings.max_waiting,
        settings.max_attempts,
        settings.keep_seconds,
        settings.leftover_seconds,
    )
    store, notifier = JobStore(database, limits, published=settings.outbox), Notifier()
    seals = Seals(artifacts)
    eraser = Eraser(store, artifacts, seals)
    maker = Maker(store, artifacts, seals, eraser, settings.job_timeout_seconds)
    opened = AsyncExitStack()
    opened.push_async_callback(database.close)
    client = await opened.enter_async_context(Client(settings.pipeline_target, retry=FOR_SERVICES))
    runner = Runner(store, artifacts, seals, eraser, client, notifier, settings)
    runner.start()
    jobs = JobService(store, artifacts, seals, eraser, maker, runner, notifier, settings)

    async def close() -> None:
        await maker.finish()
        await opened.aclose()

    return [
        Service(JOBS, _NAME, jobs.methods(), settings, retire=runner.retire, close=close),
        outcome_service(store.outbox, notifier, settings),
    ]


class JobService:
    """Serves `JobService`; every job is looked up with the caller's tenant."""

    def __init__(
        self,
        store: JobStore,
        artifacts: Artifacts,
        seals: Seals,
        eraser: Eraser,
        maker: Maker,
        runner: Runner,
        notifier: Notifier,
        settings: JobsSettings,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._seals = seals
        self._eraser = eraser
        self._maker = maker
        self._runner = runner
        self._notifier = notifier
        self._settings = settings
        self._lists = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._watches: Counter[str] = Counter()
        self._list_pace = Pace(_LISTED_PER_SECOND, _LIST_BURST_SECONDS)
        self._watch_pace = Pace(settings.watch_updates_per_second, _WATCH_BURST_SECONDS)

    def methods(self) -> tuple[Method[Any], ...]:
        """Name the calls."""

        def one(name: str, request: type, start: type, serve: Serve[Any]) -> Method[Any]:
            return Method(
                name,
                request,
                start,
                serve,
                streams_requests=False,
                replies=Replies.ONE,
            )

        return (
            Method(
                "CreateJob",
                job_pb2.CreateJobRequest,
                CreateJobStart,
                self.create,
                replies=Replies.ONE,
            ),
            one("GetJob", job_pb2.GetJobRequest, GetJob, self.get),
            one("ListJobs", job_pb2.ListJobsRequest, ListJobs, self.list),
            one("CancelJob", job_pb2.CancelJobRequest, CancelJob, self.cancel),
            one("EraseJob", job_pb2.EraseJobRequest, EraseJob, self.erase),
            Method(
                "WatchJob",
                job_pb2.WatchJobRequest,
                WatchJob,
                self.watch,
                streams_requests=False,
                replies=Replies.MESSAGES,
                ends_at_drain=True,
            ),
            Method(
                "FetchPicture",
                job_pb2.FetchPictureRequest,
                FetchPicture,
                self.fetch,
                streams_requests=False,
            ),
        )

    async def create(
        self, start: CreateJobStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Serve `CreateJob`."""
        _check(start)
        kept, is_new = await self._maker.make(start, await incoming.receive(), call)
        if is_new:
            self._notifier.notify(WORK, OUTCOMES)
        yield await self._shown(kept)

    async def _shown(self, kept: Kept) -> bytes:
        return (await self._seals.opened(kept)).SerializeToString()

    async def get(self, asked: GetJob, _: Incoming, call: Call) -> AsyncGenerator[bytes, None]:
        """Serve `GetJob`."""
        yield await self._shown(await self._store.get(call.tenant, asked.id))

    async def list(self, asked: ListJobs, _: Incoming, call: Call) -> AsyncGenerator[bytes, None]:
        """Serve `ListJobs`: a few at a time, so that the memory of pages is bounded.

        A tenant that is over its rate of listed jobs waits first.
        """
        if asked.page_size > _LARGEST_PAGE:
            raise field_error("page_size", f"takes at most {_LARGEST_PAGE}; 0 for {_PAGE}")
        size, most = asked.page_size or _PAGE, self._settings.page_bytes
        await asyncio.sleep(self._list_pace.take(call.tenant, size))
        async with self._lists:
            found, token = await self._store.page(
                call.tenant, asked.states, size, asked.page_token, most
            )
            page = job_pb2.ListJobsResponse(next_page_token=token)
            for kept in found:
                page.jobs.append(await self._seals.opened(kept))
                await asyncio.sleep(0)  # other calls go on meanwhile
            self._list_pace.take(call.tenant, len(found) - size)  # what was not needed
            yield page.SerializeToString()

    async def cancel(
        self, asked: CancelJob, _: Incoming, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Serve `CancelJob`."""
        kept = await self._store.cancel(call.tenant, asked.id)
        yield await self._shown(await self._ended(call.tenant, kept))

    async def erase(self, asked: EraseJob, _: Incoming, call: Call) -> AsyncGenerator[bytes, None]:
        """Serve `EraseJob`."""
        kept = await self._store.erase(call.tenant, asked.id)
        yield await self._shown(await self._ended(call.tenant, kept))

    async def _ended(self, tenant: str, kept: Kept) -> Kept:
        """Wait for the end of a job that is cancelled, and erase it if that is asked for."""
        job_id = kept.message.id
        self._runner.cancel(job_id)
        self._notifier.notify(job_id, OUTCOMES)
        with self._notifier.subscribe(job_id) as subscription, suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                while kept.message.state not in _ENDED:
                    await subscription.wait(self._settings.poll_seconds)
                    kept = await self._store.get(tenant, job_id)
        if kept.message.erasing and await self._eraser.erase(job_id):
            self._notifier.notify(OUTCOMES)
            kept = await self._store.get(tenant, job_id)
        return kept

    async def watch(self, asked: WatchJob, _: Incoming, call: Call) -> AsyncGenerator[bytes, None]:
        """Serve `WatchJob`: the stored rows, as they are but for previews."""
        if asked.from_sequence > _LAST_SEQUENCE:
            raise field_error("from_sequence", f"takes at most {_LAST_SEQUENCE}")
        job = (await self._store.get(call.tenant, asked.id)).message
        following = max(1, asked.from_sequence)
        if job.state in _ENDED and following > job.sequence:
            return  # asked for what is behind the end
        with self._one_more_watch(call.tenant), self._notifier.subscribe(asked.id) as subscription:
            while True:
                bodies = await self._store.updates_of(asked.id, following)
                for body in bodies:
                    update = job_pb2.JobUpdate.FromString(body)
                    following = update.sequence + 1
                    yield await self._readable(job, update, body)
                    if update.job.state in _ENDED:
                        return
                # After it is sent, so that older watches do not delay a new one's first page.
                await asyncio.sleep(self._watch_pace.take(call.tenant, len(bodies)))
                if len(bodies) < UPDATES_AT_ONCE:
                    await subscription.wait(self._settings.poll_seconds)

    @contextmanager
    def _one_more_watch(self, tenant: str) -> Iterator[None]:
        most = self._settings.max_watches_per_tenant
        if self._watches[tenant] >= most:
            raise OverloadedError(
                f"this tenant has {most} WatchJob calls open, and {most} is the limit; "
                "end one of them, or ask by GetJob",
                retry_after_seconds=_WATCH_AGAIN_SECONDS,
            )
        self._watches[tenant] += 1
        _watches.add(1)
        try:
            yield
        finally:
            _watches.add(-1)
            self._watches[tenant] -= 1
            if not self._watches[tenant]:
                del self._watches[tenant]

    async def _readable(self, job: job_pb2.Job, update: job_pb2.JobUpdate, body: bytes) -> bytes:
        """Give an update with its preview, or without it where that is erased."""
        if not update.event.preview.picture.data:
            return body
        gone = job.erasing or job.erased
        picture = update.event.preview.picture
        if not gone and (seal := await self._seals.of(job.id)) is not None:
            picture.data = seal.open(picture.data)
        else:
            update.event.preview.ClearField("picture")
        return update.SerializeToString()

    async def fetch(
        self, asked: FetchPicture, _: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `FetchPicture`."""
        kept, artifact = await self._store.picture(call.tenant, asked.id)
        job = kept.job
        data = await self._artifacts.get(artifact)
        yield accepted(Stage.PIPELINE, call)
        async for event in send_output([outgoing_image(PayloadKind.IMAGE, data, job.picture)]):
            yield event
        yield Finished(job.ledger or events.Ledger(0.0), job.fits)


_ENDED = {
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
}


def _check(start: CreateJobStart) -> None:
    """Apply the pipeline's validation before the job is stored."""
    check_options(start.options or TryOnOptions())
    if start.request_id:
        check_request_id(start.request_id)
    check_labels(start.labels)
    if len(start.correlation_id) > LONGEST_CORRELATION_ID:
        raise field_error("correlation_id", f"takes at most {LONGEST_CORRELATION_ID} bytes")
    seconds = start.timeout_seconds
    if seconds is not None and not 0 < seconds <= _LONGEST_SECONDS:
        raise field_error("timeout_seconds", f"takes more than 0 and at most {_LONGEST_SECONDS:g}")
    check_pictures(start.payloads, MAX_GARMENTS)
