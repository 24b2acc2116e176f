"""Jobs from end to end: made, watched, cancelled, fetched, through gRPC, REST and the command."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from opentelemetry import context, propagate
from sqlalchemy import Connection, text
from tests.support.bad_input import OPTIONS, PICTURE
from tests.support.jobs import jobs_served
from tests.support.processes import VTRYON

import vtryon
from vtryon.jobs import JobState, JobUpdate, WatchJob
from vtryon.wire.unary import listen
from vtryon_services.backends.scripted import ScriptedSampling, ScriptedTextEncoder
from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.jobs.database import open_database
from vtryon_services.jobs.records import NewJob
from vtryon_services.jobs.store import UPDATES_AT_ONCE, JobStore
from vtryon_services.pipeline import flow
from vtryon_services.storage.artifacts import Artifacts

WATCH = "/vtryon.v1.JobService/WatchJob"


@pytest.fixture
async def http(jobs_mesh: str):
    settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target=jobs_mesh)
    async with (
        begin(settings) as began,
        httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as client,
    ):
        yield client


async def test_a_job_is_made_watched_and_fetched(caller: vtryon.Client) -> None:
    job = await caller.jobs.create(PICTURE, PICTURE, steps=4, request_id="order-1")
    updates = [update async for update in caller.jobs.watch(job.id)]
    assert [update.sequence for update in updates] == list(range(1, len(updates) + 1))
    states = [update.job.state for update in updates if update.job]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    steps = [one.event.step for one in updates if isinstance(one.event, vtryon.StepFinished)]
    assert steps == [1, 2, 3, 4]
    assert all(update.job.options is None for update in updates if update.job)  # no prompts
    picture = await caller.jobs.picture(job.id)
    drawn = await caller.try_on(PICTURE, PICTURE, steps=4, seed=job.options.seed)
    assert picture.data == drawn.picture.data
    ended = await caller.jobs.get(job.id)
    assert ended.ledger.wall_seconds > 0
    late = [one.sequence async for one in caller.jobs.watch(job.id, from_sequence=5)]
    assert late == list(range(5, len(updates) + 1))
    assert [one async for one in caller.jobs.watch(job.id, from_sequence=999)] == []


@pytest.mark.parametrize("given", [None, vtryon.Priority.INTERACTIVE, vtryon.Priority.BATCH])
async def test_a_job_is_drawn_at_its_priority(
    caller: vtryon.Client, monkeypatch: pytest.MonkeyPatch, given: vtryon.Priority | None
) -> None:
    seen: list[vtryon.Priority] = []
    sample_start = flow.sample_start

    def noted(options: vtryon.TryOnOptions, *rest: object) -> object:
        seen.append(options.priority)
        return sample_start(options, *rest)

    monkeypatch.setattr(flow, "sample_start", noted)
    job = await caller.jobs.create(PICTURE, PICTURE, steps=1, priority=given)
    assert (await caller.jobs.wait(job.id)).state is JobState.SUCCEEDED
    assert seen == [given or vtryon.Priority.BATCH]


async def test_an_attempt_has_the_whole_trace_of_who_made_the_job(
    caller: vtryon.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    sample_start = flow.sample_start

    def noted(*given: object) -> object:
        seen.append({})
        propagate.inject(seen[-1])
        return sample_start(*given)

    monkeypatch.setattr(flow, "sample_start", noted)
    trace = "0af7651916cd43dd8448eb211c80319c"
    given = {
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        "tracestate": "vendor=one",
        "baggage": "shop=north",
    }
    token = context.attach(propagate.extract(given))
    try:
        job = await caller.jobs.create(PICTURE, PICTURE, steps=1)
    finally:
        context.detach(token)
    assert (await caller.jobs.wait(job.id)).state is JobState.SUCCEEDED
    [found] = seen
    assert trace in found["traceparent"]
    assert (found["tracestate"], found["baggage"]) == ("vendor=one", "shop=north")


async def test_a_correlation_id_has_a_limit(caller: vtryon.Client) -> None:
    with pytest.raises(vtryon.RequestError, match=r"correlation_id: takes at most 1024 bytes"):
        await caller.jobs.create(PICTURE, steps=1, correlation_id=b"x" * 1025)


async def test_the_same_request_is_the_same_job(caller: vtryon.Client) -> None:
    first = await caller.jobs.create(PICTURE, PICTURE, steps=2, request_id="twice")
    again = await caller.jobs.create(PICTURE, PICTURE, steps=2, request_id="twice")
    assert again.id == first.id
    with pytest.raises(vtryon.RequestError) as caught:
        await caller.jobs.create(PICTURE, PICTURE, steps=3, request_id="twice")
    assert caught.value.reason is vtryon.Reason.ALREADY_EXISTS
    assert caught.value.metadata["job_id"] == first.id


async def test_other_pictures_are_another_request(caller: vtryon.Client) -> None:
    first = await caller.jobs.create(PICTURE, PICTURE, steps=2, request_id="pictures")
    other = PICTURE[:-1] + bytes([PICTURE[-1] ^ 1])  # of the same length
    for pictures in ((other, PICTURE), (PICTURE, other), (PICTURE, None)):
        with pytest.raises(vtryon.RequestError) as caught:
            await caller.jobs.create(*pictures, steps=2, request_id="pictures")
        assert caught.value.reason is vtryon.Reason.ALREADY_EXISTS
    assert (await caller.jobs.wait(first.id)).state is JobState.SUCCEEDED


async def test_numbers_out_of_range_are_refused_by_name(caller: vtryon.Client) -> None:
    job = await caller.jobs.create(PICTURE, steps=1)
    await caller.jobs.wait(job.id)
    assert [one async for one in caller.jobs.watch(job.id, from_sequence=2**63 - 1)] == []
    for first in (2**63, 2**64 - 1):
        with pytest.raises(vtryon.RequestError, match="from_sequence"):
            await anext(caller.jobs.watch(job.id, from_sequence=first))
    with pytest.raises(vtryon.RequestError, match="page_size"):
        await caller.jobs.page(size=1001)
    for job_id in ("", "x" * 6000, "a\0", "f" * 33):
        with pytest.raises(vtryon.RequestError) as caught:
            await caller.jobs.get(job_id)
        assert caught.value.reason is vtryon.Reason.NOT_FOUND


async def test_watches_of_a_tenant_have_a_limit(
    caller: vtryon.Client,
) -> None:
    job = await caller.jobs.create(PICTURE, steps=200)
    watches = [caller.jobs.watch(job.id) for _ in range(64)]
    for watch in watches:
        await anext(watch)
    call = listen(caller.channel, WATCH, WatchJob(job.id), JobUpdate)
    with pytest.raises(vtryon.OverloadedError, match="64 WatchJob calls"):
        await anext(call)
    other = caller.acting_for("other")
    beside = await other.jobs.create(PICTURE, steps=1)
    assert (await other.jobs.wait(beside.id)).state is JobState.SUCCEEDED  # its own limit
    for watch in watches:
        await watch.aclose()
    await caller.jobs.cancel(job.id)


async def test_watches_of_a_tenant_share_a_rate_and_miss_nothing(
    database_url: str, tmp_path: Path
) -> None:
    own = {"scripted_seconds": 0.005, "watch_updates_per_second": 200.0}
    async with (
        jobs_served(tmp_path, database_url=database_url, **own) as target,
        vtryon.Client(target) as client,
    ):
        job = await client.jobs.create(PICTURE, steps=60)
        await client.jobs.wait(job.id)
        started = time.monotonic()
        seen = await asyncio.gather(*(sequences(client, job.id) for _ in range(8)))
        several = time.monotonic() - started
        other = client.acting_for("other")
        beside = await other.jobs.create(PICTURE, steps=1)
        started = time.monotonic()
        await other.jobs.wait(beside.id)
        assert time.monotonic() - started < several  # a rate of its own
    assert all(one == list(range(1, len(one) + 1)) for one in seen)
    assert len(seen[0]) > UPDATES_AT_ONCE
    # The rest waits for what all were sent at first, but for what was saved up before.
    assert several > 8 * UPDATES_AT_ONCE / 200 - 0.25


async def sequences(client: vtryon.Client, job_id: str) -> list[int]:
    return [update.sequence async for update in client.jobs.watch(job_id)]


async def test_a_failing_database_says_nothing_of_the_caller(
    caller: vtryon.Client, database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    full = (
        "CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
        "DROP TRIGGER full",
    )
    if database_url.startswith("postgresql"):
        function = "CREATE FUNCTION full_() RETURNS trigger AS $$ BEGIN RAISE disk_full; END $$"
        trigger = "CREATE TRIGGER t BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION full_()"
        full = (f"{function} LANGUAGE plpgsql; {trigger}", "DROP TRIGGER t ON jobs")
    await execute(database_url, full[0])
    said = {
        "prompt": "promptcanary",
        "negative_prompt": "negativecanary",
        "labels": {"k": "labelcanary"},
        "request_id": "idcanary",
    }
    with pytest.raises(vtryon.UnavailableError) as caught:
        await caller.acting_for("tenantcanary").jobs.create(PICTURE, steps=1, **said)
    assert "database failed" in caught.value.message
    await execute(database_url, full[1])
    written = "".join(capfd.readouterr())
    assert "canary" not in written.replace("request_id=idcanary", "") + caught.value.message
    job = await caller.jobs.create(PICTURE, steps=1)
    assert (await caller.jobs.wait(job.id)).state is JobState.SUCCEEDED


async def execute(url: str, statements: str) -> None:
    def run(connection: Connection) -> None:
        for one in statements.split("; CREATE") if "LANGUAGE" in statements else [statements]:
            words = one if one.startswith(("CREATE", "DROP")) else f"CREATE{one}"
            connection.execute(text(words))

    database = await open_database(url)
    await database.write(run)
    await database.close()


async def test_no_step_follows_a_cancel(caller: vtryon.Client) -> None:
    job = await caller.jobs.create(PICTURE, PICTURE, steps=200)
    async for update in caller.jobs.watch(job.id):
        if isinstance(update.event, vtryon.StepFinished) and update.event.step == 3:
            break
    started = time.monotonic()
    cancelled = await caller.jobs.cancel(job.id)
    assert cancelled.state is JobState.CANCELLED
    assert time.monotonic() - started < 1
    last = [update async for update in caller.jobs.watch(job.id)][-1]
    assert last.job.state is JobState.CANCELLED
    await asyncio.sleep(0.2)
    assert await caller.jobs.get(job.id) == cancelled
    with pytest.raises(vtryon.RequestError, match="has no picture"):
        await caller.jobs.picture(job.id)


@pytest.mark.parametrize(
    "name", [name for name, (options, _) in OPTIONS.items() if "numerics" not in options]
)
async def test_what_the_pipeline_would_refuse_is_no_job(caller: vtryon.Client, name: str) -> None:
    options, field = OPTIONS[name]
    with pytest.raises(vtryon.RequestError) as caught:
        await caller.jobs.create(PICTURE, PICTURE, **options)
    assert caught.value.reason is vtryon.Reason.FIELD_INVALID
    if field is not None:
        assert [violation.field for violation in caught.value.violations] == [field]


async def test_ids_and_deadlines_that_are_none(caller: vtryon.Client) -> None:
    for request_id in ("with space", "x" * 129, "ä"):
        with pytest.raises(vtryon.RequestError, match="request_id"):
            await caller.jobs.create(PICTURE, request_id=request_id)
    for seconds in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(vtryon.RequestError, match="timeout_seconds"):
            await caller.jobs.create(PICTURE, timeout_seconds=seconds)
    with pytest.raises(vtryon.RequestError) as caught:
        await caller.jobs.create(PICTURE, [PICTURE] * 4)
    assert caught.value.reason is vtryon.Reason.PAYLOAD_INVALID


async def test_a_deadline_ends_a_job(caller: vtryon.Client) -> None:
    job = await caller.jobs.create(PICTURE, steps=200, timeout_seconds=0.4)
    ended = await caller.jobs.wait(job.id)
    assert (ended.state, ended.error.reason) == (JobState.FAILED, vtryon.Reason.DEADLINE_PASSED)


async def test_tenants_do_not_meet(caller: vtryon.Client) -> None:
    job = await caller.acting_for("acme").jobs.create(PICTURE, steps=1)
    with pytest.raises(vtryon.RequestError) as caught:
        await caller.acting_for("eve").jobs.get(job.id)
    assert caught.value.reason is vtryon.Reason.NOT_FOUND
    assert [one.id async for one in caller.acting_for("acme").jobs.list()] == [job.id]
    assert [one.id async for one in caller.jobs.list()] == []


async def test_by_rest(http: httpx.AsyncClient, caller: vtryon.Client) -> None:
    files = [("person", PICTURE), ("garments", PICTURE)]
    headers = {"prefer": "respond-async", "idempotency-key": "by-rest"}
    made = await http.post("/v1/try-ons", files=files, data={"steps": 3}, headers=headers)
    assert made.status_code == 202
    where = made.headers["location"]
    assert where == f"/v1/jobs/{made.json()['id']}"
    events = await http.get(f"{where}/events")
    assert "event: step_finished" in events.text
    *_, last_event = events.text.rstrip().split("\n\n")
    assert '"state":"succeeded"' in last_event.replace(" ", "")
    last = max(int(line[4:]) for line in events.text.splitlines() if line.startswith("id: "))
    tail = await http.get(f"{where}/events", headers={"last-event-id": str(last - 1)})
    assert tail.text.count("event: ") == 1
    job = (await http.get(where)).json()
    assert job["state"] == "succeeded"
    assert (await http.get(f"{where}/picture")).headers["content-type"] == "image/png"
    listed = await http.get("/v1/jobs", params={"state": "succeeded"})
    assert [one["id"] for one in listed.json()["jobs"]] == [job["id"]]
    assert (await caller.jobs.get(job["id"])).request_id == "by-rest"
    assert (await http.delete(where)).json()["erased"]
    assert (await http.get(f"{where}/picture")).status_code == 404
    missing = await http.get("/v1/jobs/none")
    assert (missing.status_code, missing.json()["reason"]) == (404, "NOT_FOUND")


async def test_a_key_makes_a_try_on_idempotent(http: httpx.AsyncClient) -> None:
    files = [("person", PICTURE), ("garments", PICTURE)]
    headers = {"idempotency-key": "k-1"}

    async def post(steps: int, **more: str) -> httpx.Response:
        given = {**headers, **more}
        return await http.post("/v1/try-ons", files=files, data={"steps": steps}, headers=given)

    first, second = await asyncio.gather(post(2), post(2))
    assert first.status_code == second.status_code == 200, first.text
    assert first.content == second.content
    assert first.headers["x-vtryon-job"] == second.headers["x-vtryon-job"]
    other = await post(3)
    assert (other.status_code, other.json()["reason"]) == (409, "ALREADY_EXISTS")
    streamed = await post(2, accept="text/event-stream")
    assert '"succeeded"' in streamed.text


async def test_watched_by_grpc_and_cancelled_by_rest(http, caller: vtryon.Client) -> None:
    job = await caller.jobs.create(PICTURE, steps=200)
    seen: list[vtryon.JobUpdate] = []
    async for update in caller.jobs.watch(job.id):
        seen.append(update)
        if isinstance(update.event, vtryon.StepFinished) and update.event.step == 2:
            answer = await http.post(f"/v1/jobs/{job.id}/cancel")
            assert answer.json()["state"] == "cancelled"
    assert seen[-1].job.state is JobState.CANCELLED


async def test_the_command(jobs_mesh: str, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(PICTURE)

    def jobs(*words: str) -> subprocess.CompletedProcess[str]:
        command = [VTRYON, "jobs", *words, "--endpoint", jobs_mesh]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    def session() -> None:
        odd = jobs("submit", "p.png", "p.png", "--label", "order")
        assert odd.returncode == 2
        assert "'order' is not <key>=<value>" in " ".join(odd.stderr.split())
        labels = ("--label", "order=47=11", "--label", "shop=Zürich")
        done = jobs("submit", "p.png", "p.png", "--steps", "2", "--request-id", "cli-1", *labels)
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.strip()
        watched = jobs("watch", job_id, "--json")
        assert watched.returncode == 0
        assert json.loads(watched.stdout.splitlines()[-1])["job"]["state"] == "succeeded"
        assert jobs("fetch", job_id, "-o", "out.jpg").returncode == 2
        assert jobs("fetch", job_id, "-o", "out.png").returncode == 0
        assert json.loads(jobs("list", "--json").stdout)["id"] == job_id
        assert "succeeded" in jobs("show", job_id).stdout
        shown = json.loads(jobs("show", job_id, "--json").stdout)
        assert shown["labels"] == {"order": "47=11", "shop": "Zürich"}
        assert "cancelled" not in jobs("cancel", job_id).stdout
        assert jobs("erase", job_id).returncode == 0
        missing = jobs("show", "none", "--json")
        assert missing.returncode == 2
        assert json.loads(missing.stdout)["error"]["reason"] == "NOT_FOUND"

    await asyncio.to_thread(session)
    assert (tmp_path / "out.png").read_bytes()


async def test_a_restart_loses_nothing(database_url: str, tmp_path: Path) -> None:
    """Jobs that run are put back when the service drains, and go on from their resume points."""
    own = {"scripted_seconds": 0.05, "resume_every": 2, "drain_grace_seconds": 20.0}
    async with (
        jobs_served(tmp_path, database_url=database_url, **own) as target,
        vtryon.Client(target) as client,
    ):
        job = await client.jobs.create(PICTURE, steps=12, request_id="long")
        async for update in client.jobs.watch(job.id):
            if isinstance(update.event, vtryon.StepFinished) and update.event.step == 5:
                break
    async with (
        jobs_served(tmp_path, database_url=database_url, **own) as target,
        vtryon.Client(target) as client,
    ):
        updates = [update async for update in client.jobs.watch(job.id)]
        drawn = await client.try_on(PICTURE, steps=12, seed=job.options.seed)
        assert (await client.jobs.picture(job.id)).data == drawn.picture.data
        assert (await client.jobs.get(job.id)).attempts == 1  # nobody's fault
    assert [one.sequence for one in updates] == list(range(1, len(updates) + 1))
    steps = [one.event.step for one in updates if isinstance(one.event, vtryon.StepFinished)]
    assert steps[-1] == 12
    assert steps.count(1) == 1  # not from the beginning


@pytest.mark.parametrize("changed", [ScriptedSampling, ScriptedTextEncoder])
async def test_a_job_begins_anew_where_a_model_has_changed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: type
) -> None:
    """No picture is begun by one model and finished by another."""
    own = {"scripted_seconds": 0.05, "resume_every": 2, "drain_grace_seconds": 0.2}
    async with (
        jobs_served(tmp_path, database_url=database_url, **own) as target,
        vtryon.Client(target) as client,
    ):
        job = await client.jobs.create(PICTURE, steps=12, request_id="long")
        async for update in client.jobs.watch(job.id):
            if isinstance(update.event, vtryon.StepFinished) and update.event.step == 5:
                break
    monkeypatch.setattr(changed, "digest", "1" * 64)
    async with (
        jobs_served(tmp_path, database_url=database_url, **own) as target,
        vtryon.Client(target) as client,
    ):
        updates = [update async for update in client.jobs.watch(job.id)]
        assert (await client.jobs.get(job.id)).state is JobState.SUCCEEDED
    steps = [one.event.step for one in updates if isinstance(one.event, vtryon.StepFinished)]
    assert steps[-12:] == list(range(1, 13))
    assert steps.count(1) == 2


def test_a_database_that_is_none_is_said(tmp_path: Path) -> None:
    for url in (
        "nonsense",
        "postgresql+asyncpg://u:secret@127.0.0.1:1/x",
        "sqlite:////nowhere/x",
    ):
        done = subprocess.run(
            [VTRYON, "serve", "jobs", "--listen", "127.0.0.1:0"],
            env={
                "VTRYON_JOBS_DATABASE_URL": url,
                "PATH": "",
                "VTRYON_JOBS_ARTIFACTS_URL": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "database" in done.stderr
        assert "secret" not in done.stderr


async def test_a_caller_that_leaves_early_leaves_no_pictures(
    caller: vtryon.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, putting, go_on = Artifacts.put, asyncio.Event(), asyncio.Event()

    async def slowly(artifacts: Artifacts, name: str, data: bytes) -> str:
        putting.set()
        await go_on.wait()
        return await put(artifacts, name, data)

    monkeypatch.setattr(Artifacts, "put", slowly)
    asking = asyncio.create_task(caller.jobs.create(PICTURE, PICTURE, request_id="left-early"))
    await putting.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    monkeypatch.setattr(Artifacts, "put", put)
    job = await caller.jobs.create(PICTURE, steps=1)  # the server has seen the other leave
    go_on.set()
    await caller.jobs.wait(job.id)
    async with asyncio.timeout(30):
        while {one.name for one in (tmp_path / "artifacts").iterdir()} != {job.id}:
            await asyncio.sleep(0.05)
    assert [one.id async for one in caller.jobs.list()] == [job.id]


async def test_a_caller_that_leaves_leaves_no_job_without_pictures(
    caller: vtryon.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, made = JobStore.create, asyncio.Event()

    async def slowly(ledger: JobStore, new: NewJob) -> tuple[vtryon.Job, bool]:
        result = await create(ledger, new)
        made.set()
        await asyncio.sleep(0.3)  # it is durable, and the caller does not know it yet
        return result

    monkeypatch.setattr(JobStore, "create", slowly)
    asking = asyncio.create_task(
        caller.jobs.create(PICTURE, PICTURE, steps=1, request_id="left-behind")
    )
    await made.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.5)
    [job] = [job async for job in caller.jobs.list() if job.request_id == "left-behind"]
    assert (await caller.jobs.wait(job.id)).state is JobState.SUCCEEDED


async def test_a_tenant_that_lists_much_waits_and_no_other_does(caller: vtryon.Client) -> None:
    much, little = caller.acting_for("much").jobs, caller.acting_for("little").jobs
    for jobs in (much, little):
        await jobs.create(PICTURE, steps=1)
    started = time.monotonic()
    pages = await asyncio.gather(*(much.page(size=1000) for _ in range(6)))
    assert time.monotonic() - started > 0.4  # those that overlap, by 1000 jobs a second
    assert [len(page.jobs) for page in pages] == [1] * 6
    started = time.monotonic()
    for _ in range(5):  # what was not needed is given back
        await much.page(size=100)
        await little.page(size=1000)
    assert time.monotonic() - started < 1
