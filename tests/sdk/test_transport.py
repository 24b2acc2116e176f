"""A client whose transport answers by functions of the test, with the real protocol in between."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import grpc
import pytest

import vtryon
from vtryon.errors import Reason, Violation
from vtryon.events import Chunk, Output
from vtryon.jobs import CancelJob, FetchPicture, GetJob, JobPage, JobState, ListJobs, WatchJob
from vtryon.jobs.outbox import Outcomes
from vtryon.testing import CreateJobCall, InProcess, TryOnCall
from vtryon.types import EncodedImage, ImageFormat, Payload, PayloadKind

PERSON, GARMENT = b"a person", b"a garment" * 100_000  # several chunks
DRESSED = vtryon.Picture(EncodedImage(ImageFormat.PNG, 48, 64), b"\x89PNG dressed" * 50_000)
Items = AsyncIterator[vtryon.Event | vtryon.Picture]
LONG_SECONDS = 20.0


async def dress(call: TryOnCall) -> Items:
    yield vtryon.Accepted(seed=call.options.seed, steps=2)
    for step in (1, 2):
        yield vtryon.StepFinished(step, 2, sigma=1 - step / 2)
        yield vtryon.Preview(step, 2, vtryon.Picture(None, b"preview"))
    yield DRESSED


def client_of(handler: Callable[[TryOnCall], Items], **settings) -> vtryon.Client:
    return vtryon.Client(transport=InProcess(try_on=handler), **settings)


async def test_a_run_gives_the_handlers_events_and_its_picture() -> None:
    async with client_of(dress) as client:
        run = client.try_on(PERSON, GARMENT, seed=7)
        kinds = [type(event).__name__ async for event in run]
        result = await run
    steps = ["StepFinished", "Preview"] * 2
    assert kinds == ["Accepted", *steps, "Finished"]
    assert result.picture == DRESSED
    assert result.seed == 7
    assert result.ledger.wall_seconds > 0


async def test_the_handler_gets_what_was_sent() -> None:
    calls: list[TryOnCall] = []

    def record(call: TryOnCall) -> Items:
        calls.append(call)
        return dress(call)

    async with client_of(record) as client:
        tenant = client.acting_for("shop")
        await tenant.try_on(
            PERSON, [GARMENT, b"hat"], "Dress up", steps=3, request_id="order-1", timeout_seconds=9
        )
        await client.try_on(PERSON)
    first, second = calls
    assert (first.person, first.garments) == (PERSON, (GARMENT, b"hat"))
    assert (first.options.prompt, first.options.steps) == ("Dress up", 3)
    assert first.metadata["x-request-id"] == "order-1"
    assert first.metadata["x-vtryon-tenant"] == "shop"
    assert first.timeout_seconds == pytest.approx(9, abs=2)
    assert (second.garments, second.timeout_seconds) == ((), None)


@pytest.mark.parametrize(
    "error",
    [
        vtryon.RequestError("no", violations=(Violation("steps", "too many"),)),
        vtryon.AccessError("not you", reason=Reason.PERMISSION_DENIED),
        vtryon.UnavailableError("away", metadata={"stage": "sampling"}),
        vtryon.DeadlineError("late", metadata={"completed_steps": "1"}),
        vtryon.RunCancelledError("the call was cancelled"),  # a server's text does not arrive
        vtryon.StageError("broken"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_the_handler_is_the_error_of_the_call(error) -> None:
    async def fail(_call: TryOnCall) -> Items:
        yield vtryon.Accepted()
        yield vtryon.StepFinished(1, 2, sigma=0.5)
        raise error

    async with client_of(fail) as client:
        with pytest.raises(type(error)) as caught:
            await client.try_on(PERSON)
    received = caught.value
    assert (received.reason, received.message) == (error.reason, error.message)
    assert error.metadata.items() <= received.metadata.items()
    assert getattr(received, "violations", ()) == getattr(error, "violations", ())


async def test_a_refused_call_is_sent_again() -> None:
    attempts = 0

    async def refuse_once(call: TryOnCall) -> Items:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise vtryon.OverloadedError("full", retry_after_seconds=0.001)
        async for item in dress(call):
            yield item

    async with client_of(refuse_once) as client:
        assert (await client.try_on(PERSON)).picture == DRESSED
        assert attempts == 2
    attempts = 0
    async with client_of(refuse_once, retry=False) as client:
        with pytest.raises(vtryon.OverloadedError) as caught:
            await client.try_on(PERSON)
    assert caught.value.retry_after_seconds == 0.001


async def test_the_deadline_ends_the_call_and_the_handler() -> None:
    ended: list[str] = []

    async def dawdle(_call: TryOnCall) -> Items:
        yield vtryon.Accepted()
        yield vtryon.StepFinished(1, 2, sigma=0.5)
        try:
            await asyncio.sleep(LONG_SECONDS)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with client_of(dawdle) as client:
        with pytest.raises(vtryon.DeadlineError) as caught:
            await client.try_on(PERSON, timeout_seconds=0.1)
    assert caught.value.completed_steps == 1
    assert ended == ["cancelled"]


class Endless:
    """A handler that takes steps until its caller leaves."""

    def __init__(self) -> None:
        self.stepped, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self, _call: TryOnCall) -> Items:
        yield vtryon.Accepted()
        try:
            for step in range(1, 1_000_000):
                yield vtryon.StepFinished(step, 1_000_000, sigma=0.5)
                self.stepped.set()
                await asyncio.sleep(0.001)
        finally:
            self.ended.set()


async def test_breaking_off_an_iteration_ends_the_handler() -> None:
    handler = Endless()
    async with client_of(handler) as client:
        async for event in client.try_on(PERSON):
            if isinstance(event, vtryon.StepFinished):
                break
        await asyncio.wait_for(handler.ended.wait(), LONG_SECONDS)


@pytest.mark.parametrize("way", ["run", "task"])
async def test_cancelling_ends_the_handler(way: str) -> None:
    handler = Endless()
    async with client_of(handler) as client:
        run = client.try_on(PERSON)
        task = asyncio.ensure_future(run)
        await handler.stepped.wait()
        (run if way == "run" else task).cancel()
        with pytest.raises(vtryon.RunCancelledError if way == "run" else asyncio.CancelledError):
            await task
        await asyncio.wait_for(handler.ended.wait(), LONG_SECONDS)


async def test_leaving_the_client_waits_for_its_handlers() -> None:
    handler = Endless()
    async with client_of(handler) as client:
        task = asyncio.ensure_future(client.try_on(PERSON))
        await handler.stepped.wait()
    assert handler.ended.is_set()
    with pytest.raises(vtryon.RunCancelledError):
        await task


async def test_a_handler_that_fails_once_its_caller_has_left_is_reported(caplog) -> None:
    async def fail_at_the_end(_call: TryOnCall) -> Items:
        try:
            yield vtryon.Accepted()
            yield vtryon.StepFinished(1, 2, sigma=0.5)
            await asyncio.sleep(LONG_SECONDS)
        finally:
            raise AssertionError("nothing was cleaned up")

    async with client_of(fail_at_the_end) as client:
        async for _ in client.try_on(PERSON):
            break
    assert "a handler failed after its caller had left" in caplog.text
    assert "nothing was cleaned up" in caplog.text


async def test_a_handler_runs_at_most_a_message_ahead_of_its_reader() -> None:
    made: list[int] = []

    async def eager(_call: TryOnCall) -> Items:
        yield vtryon.Accepted()
        for step in range(1, 100):
            made.append(step)
            yield vtryon.StepFinished(step, 100, sigma=0.5)

    async with client_of(eager) as client:
        async for event in client.try_on(PERSON):
            if isinstance(event, vtryon.StepFinished) and event.step == 3:
                break
    assert max(made) <= 5


async def no_events(_call: TryOnCall) -> Items:
    yield DRESSED


async def no_picture(_call: TryOnCall) -> Items:
    yield vtryon.Accepted()


async def nothing(_call: TryOnCall) -> Items:
    return
    yield


async def twice(_call: TryOnCall) -> Items:
    yield vtryon.Accepted()
    yield vtryon.Accepted()


async def a_picture_too_many(_call: TryOnCall) -> Items:
    yield vtryon.Accepted()
    yield DRESSED
    yield DRESSED


async def too_few_bytes(_call: TryOnCall) -> Items:
    yield vtryon.Accepted()
    yield Output((Payload(PayloadKind.IMAGE, 10),))
    yield Chunk(0, 0, b"nine")


async def bytes_alone(_call: TryOnCall) -> Items:
    yield vtryon.Accepted()
    yield b"picture"  # type: ignore[misc]


async def no_generator(_call: TryOnCall) -> vtryon.Picture:
    return DRESSED


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (no_events, "try_on broke the grammar.*output where only accepted"),
        (no_picture, "try_on ended without a picture"),
        (nothing, "try_on ended without a picture"),
        (twice, "try_on broke the grammar.*accepted where only"),
        (a_picture_too_many, "try_on broke the grammar.*output where only"),
        (too_few_bytes, "try_on broke the grammar.*the stream ended early"),
        (bytes_alone, "try_on gave b'picture'"),
        (no_generator, "try_on is an async generator.*coroutine"),
        (None, "TryOn was called, and InProcess.. has no `try_on`"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_handler_that_breaks_the_protocol_is_noticed(handler, message: str) -> None:
    async with client_of(handler) as client:
        with pytest.raises(AssertionError, match=message):
            await client.try_on(PERSON)


async def test_an_assertion_of_the_handler_fails_the_test_itself() -> None:
    async def check(call: TryOnCall) -> Items:
        assert call.options.steps == 4, "four steps"
        yield vtryon.Accepted()

    async def program(client: vtryon.Client) -> None:
        with contextlib.suppress(vtryon.VtryonError):
            await client.try_on(PERSON, steps=2)

    async with client_of(check) as client:
        with pytest.raises(AssertionError, match="four steps"):
            await program(client)
        with pytest.raises(BaseException, match="by pytest"):
            async with client_of(fail_by_pytest) as failing:
                await failing.try_on(PERSON)


async def fail_by_pytest(_call: TryOnCall) -> Items:
    pytest.fail("by pytest")
    yield


async def test_a_file_that_cant_be_sent_is_the_runs_error() -> None:
    async with client_of(dress) as client:
        with pytest.raises(vtryon.RequestError, match="can't read the picture"):
            await client.try_on("/nowhere/person.png")


class Shop:
    """Jobs in a dictionary."""

    def __init__(self) -> None:
        self.jobs: dict[str, vtryon.Job] = {}
        self.calls: list[CreateJobCall] = []

    async def create(self, call: CreateJobCall) -> vtryon.Job:
        self.calls.append(call)
        state = JobState.SUCCEEDED if call.options.steps else JobState.QUEUED
        job = vtryon.Job(f"job-{len(self.calls)}", call.start.request_id, state, call.options)
        self.jobs[job.id] = job
        return job

    async def get(self, request: GetJob) -> vtryon.Job:
        if request.id not in self.jobs:
            raise vtryon.RequestError(f"no job {request.id}", reason=Reason.NOT_FOUND)
        return self.jobs[request.id]

    async def page(self, request: ListJobs) -> JobPage:
        jobs = [job for job in self.jobs.values() if job.state in request.states]
        at = int(request.page_token or "0")
        return JobPage(tuple(jobs[at : at + 1]), str(at + 1) if at + 1 < len(jobs) else "")

    async def cancel(self, request: CancelJob) -> vtryon.Job:
        self.jobs[request.id] = vtryon.Job(request.id, state=JobState.CANCELLED)
        return self.jobs[request.id]

    async def watch(self, request: WatchJob) -> AsyncIterator[vtryon.JobUpdate]:
        at = datetime(2026, 11, 27, tzinfo=UTC)
        yield vtryon.JobUpdate(1, at, event=vtryon.StepFinished(1, 1, sigma=0.0))
        yield vtryon.JobUpdate(2, at, job=self.jobs[request.id])

    async def picture(self, _request: FetchPicture) -> vtryon.Picture:
        return DRESSED

    def transport(self) -> InProcess:
        return InProcess(
            create_job=self.create,
            get_job=self.get,
            list_jobs=self.page,
            cancel_job=self.cancel,
            erase_job=self.cancel,
            watch_job=self.watch,
            fetch_picture=self.picture,
        )


async def test_jobs_are_answered_as_well() -> None:
    shop = Shop()
    async with vtryon.Client(transport=shop.transport()) as client:
        job = await client.jobs.create(PERSON, GARMENT, request_id="order-1", steps=1)
        [call] = shop.calls
        assert (call.person, call.garments, call.start.request_id) == (
            PERSON,
            (GARMENT,),
            "order-1",
        )
        assert await client.jobs.get(job.id) == job == shop.jobs["job-1"]
        updates = [update async for update in client.jobs.watch(job.id)]
        assert [update.sequence for update in updates] == [1, 2]
        assert updates[1].job == await client.jobs.wait(job.id)
        assert await client.jobs.picture(job.id) == DRESSED
        await client.jobs.create(PERSON, steps=1)
        await client.jobs.create(PERSON, steps=None)
        ended = [one.id async for one in client.jobs.list(states=[JobState.SUCCEEDED])]
        assert ended == ["job-1", "job-2"]
        assert (await client.jobs.cancel("job-3")).state is JobState.CANCELLED
        assert (await client.jobs.erase("job-3")).ended
        with pytest.raises(vtryon.RequestError, match="no job job-9") as caught:
            await client.jobs.get("job-9")
    assert caught.value.reason is Reason.NOT_FOUND


async def test_what_has_no_handler_is_named() -> None:
    async def wrong(_request: GetJob) -> JobPage:
        return JobPage()

    transport = InProcess(get_job=wrong)  # type: ignore[arg-type]
    async with vtryon.Client(transport=transport) as client:
        with pytest.raises(
            AssertionError, match="get_job gives a Job, and this handler gave JobPage"
        ):
            await client.jobs.get("job")
        with pytest.raises(AssertionError, match=r"InProcess\(get_job\) has no `cancel_job`"):
            await client.jobs.cancel("job")
        with pytest.raises(AssertionError, match=r"Encode was called.*no handler of that call"):
            await client.latent_encoder.encode([PERSON])
        with pytest.raises(AssertionError, match="TakeOutcomes was called"):
            await Outcomes(client.channel, "bridge").take()


async def test_it_is_ready_until_its_client_is_left() -> None:
    async with client_of(dress) as client:
        await client.wait_ready(1)
        run = client.try_on(PERSON)
    with pytest.raises(vtryon.RunCancelledError, match="closed"):
        await run
    with pytest.raises(vtryon.SettingsError, match="not open"):
        await client.wait_ready(1)


async def test_one_transport_serves_several_clients_at_once() -> None:
    transport = InProcess(try_on=dress)
    async with vtryon.Client(transport=transport) as one:
        async with vtryon.Client(transport=transport) as other:
            runs = [client.try_on(PERSON, seed=seed) for seed, client in enumerate([one, other])]
            assert [result.seed for result in await asyncio.gather(*runs)] == [0, 1]
        assert (await one.try_on(PERSON)).picture == DRESSED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "localhost:1"}, "target: has no effect with a transport"),
        ({"tls": vtryon.Tls()}, "tls: has no effect with a transport"),
        ({"token": "secret"}, "token: has no effect with a transport"),
        ({"transport": "localhost:1"}, "transport: takes an object with a method `open`, not str"),
        ({"transport": None}, "the target is text, not NoneType"),
    ],
    ids=str,
)
def test_what_a_transport_cant_honour_is_refused_by_name(settings, message: str) -> None:
    arguments = {"transport": InProcess(try_on=dress), **settings}
    with pytest.raises(vtryon.SettingsError, match=message):
        vtryon.Client(**arguments)


class Counting(grpc.aio.StreamStreamClientInterceptor):
    """Counts calls."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []

    async def intercept_stream_stream(self, continuation, details, requests):
        self.paths.append(details.method)
        return await continuation(details, requests)


async def test_a_channel_of_grpc_with_interceptors_is_a_transport(scripted_mesh: str) -> None:
    class Intercepted:
        def __init__(self) -> None:
            self.counting = Counting()

        def open(self) -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(scripted_mesh, interceptors=[self.counting])

    transport = Intercepted()
    async with vtryon.Client(transport=transport) as client:
        await client.wait_ready(LONG_SECONDS)
        assert (await client.try_on(PERSON, steps=1)).picture.data
        with pytest.raises(vtryon.DeadlineError):
            await client.try_on(PERSON, steps=200, timeout_seconds=0.3)
        run = client.try_on(PERSON, steps=200)
        async for _ in run:
            asyncio.get_running_loop().call_soon(run.cancel)
            break
        with pytest.raises(vtryon.RunCancelledError):
            await run
    assert set(transport.counting.paths) == {b"/vtryon.v1.PipelineService/TryOn"}


async def test_a_transport_without_a_server_is_waited_for_and_named() -> None:
    class Nowhere:
        def __repr__(self) -> str:
            return "Nowhere()"

        def open(self) -> grpc.aio.Channel:
            return grpc.aio.insecure_channel("127.0.0.1:1")

    async with vtryon.Client(transport=Nowhere()) as client:
        with pytest.raises(vtryon.UnavailableError, match=r"Nowhere\(\) can't be reached"):
            await client.try_on(PERSON, timeout_seconds=1.2)


def test_the_bare_sdk_is_enough() -> None:
    program = (
        "import sys, vtryon.testing; "
        "print([name for name in sys.modules if name.startswith('vtryon_') or name == 'numpy'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
