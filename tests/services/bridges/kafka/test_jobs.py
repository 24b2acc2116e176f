"""Whole jobs by Kafka: the same jobs as by every other interface."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.support.kafka import Kafka, job_request, schema, until, written
from tests.support.pictures import png
from tests.support.processes import ServedMesh

import vtryon
from vtryon.jobs import JobState
from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings

PICTURE = png()
EXAMPLE = Path(__file__).parents[4] / "sdk" / "examples" / "kafka_job.py"


def name() -> str:
    return uuid.uuid4().hex[:12]


async def states(kafka: Kafka, request_id: str, *, count: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    async with kafka.reader("jobs.events") as reader, asyncio.timeout(30):
        while len(found) < count:
            for records in (await reader.getmany(timeout_ms=100)).values():
                events = [
                    kafka.read(one.value) for one in records if one.key == request_id.encode()
                ]
                found += [(event["sequence"], event["state"]) for event in events]
    return found


async def test_a_request_becomes_a_job_and_its_picture_an_answer(kafka: Kafka, office) -> None:
    one = name()
    request = {**job_request(one, PICTURE, PICTURE, steps=4, seed=7), "labels": {"shop": "north"}}
    await kafka.send("jobs.requests", "job_request", request, correlation_id="c-1")
    [answer] = await kafka.answers("jobs.responses", one)
    headers = dict(answer.headers)
    assert headers["correlation-id"] == b"c-1"
    said = kafka.read(answer.value)
    assert (said["state"], said["seed"], said["attempts"]) == ("SUCCEEDED", 7, 1)
    assert said["labels"] == {"shop": "north"}
    assert {hop["stage"] for hop in said["hops"]} >= {"sampling", "decoding"}
    async with vtryon.Client(office.target) as client:
        drawn = await client.try_on(PICTURE, PICTURE, prompt="", steps=4, seed=7)
        job = await client.jobs.get(said["job_id"])
    assert said["picture"]["content"]["inline"] == drawn.picture.data
    assert (job.state, job.request_id) == (JobState.SUCCEEDED, one)
    told = await states(kafka, one, count=3)
    assert [state for _, state in told] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert sorted(told) == told


async def test_a_correlation_id_is_no_label_and_the_trace_comes_back_whole(kafka: Kafka) -> None:
    labels = {f"label-{number}": "x" for number in range(15)} | {"correlation-id": "my own"}
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=one",
        "baggage": "shop=" + "n" * 2000,
    }
    one, correlation = name(), "c" * 1024
    request = {**job_request(one, PICTURE, PICTURE, steps=1), "labels": labels}
    await kafka.send("jobs.requests", "job_request", request, correlation_id=correlation, **trace)
    [answer] = await kafka.answers("jobs.responses", one)
    headers = {key: value.decode() for key, value in answer.headers}
    assert headers["correlation-id"] == correlation
    assert (headers["tracestate"], headers["baggage"]) == (trace["tracestate"], trace["baggage"])
    assert "0af7651916cd43dd8448eb211c80319c" in headers["traceparent"]
    said = kafka.read(answer.value)
    assert (said["state"], said["labels"]) == ("SUCCEEDED", labels)


async def test_the_example_needs_nothing_of_ours(kafka: Kafka, tmp_path: Path) -> None:
    source = EXAMPLE.read_text()
    assert "vtryon" not in {line.split()[1] for line in source.splitlines() if "import" in line}
    picture, out = tmp_path / "picture.png", tmp_path / "result.png"
    picture.write_bytes(PICTURE)
    given = [kafka.servers, kafka.url, picture, picture, out, kafka.prefix]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, EXAMPLE, *map(str, given)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "succeeded in" in done.stdout, done.stderr
    assert out.read_bytes()[1:4] == b"PNG"


async def test_submitted_by_kafka_watched_by_grpc_cancelled_by_rest(kafka: Kafka, office) -> None:
    one = name()
    await kafka.send(
        "jobs.requests", "job_request", job_request(one, PICTURE, PICTURE, steps=200, seed=1)
    )
    settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target=office.target)
    async with (
        vtryon.Client(office.target) as client,
        begin(settings) as began,
        httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as http,
        asyncio.timeout(30),
    ):
        while not (found := [job async for job in client.jobs.list() if job.request_id == one]):
            await asyncio.sleep(0.05)
        [job] = found
        async for update in client.jobs.watch(job.id):
            if isinstance(update.event, vtryon.StepFinished):
                break
        answer = await http.post(f"/v1/jobs/{job.id}/cancel")
        assert answer.json()["state"] == "cancelled"
        step = (await client.jobs.get(job.id)).step
        assert 0 < step < 200
        await asyncio.sleep(0.3)
        updates = [update async for update in client.jobs.watch(job.id)]
        steps = [one.event.step for one in updates if isinstance(one.event, vtryon.StepFinished)]
        assert max(steps) == step  # no step runs after the cancel
    [answer] = await kafka.answers("jobs.responses", one)
    assert kafka.read(answer.value)["state"] == "CANCELLED"


async def test_a_job_of_another_interface_is_told_as_well(kafka: Kafka, office: ServedMesh) -> None:
    async with vtryon.Client(office.target) as client:
        job = await client.jobs.create(
            PICTURE, PICTURE, steps=2, request_id=name(), labels={"interface": "grpc"}
        )
    [answer] = await kafka.answers("jobs.responses", job.request_id)
    said = kafka.read(answer.value)
    assert (said["job_id"], said["state"], said["labels"]) == (
        job.id,
        "SUCCEEDED",
        {"interface": "grpc"},
    )
    assert dict(answer.headers)["correlation-id"] == job.request_id.encode()


async def test_twice_the_same_request_is_one_job(kafka: Kafka, office: ServedMesh) -> None:
    one = name()
    request = job_request(one, PICTURE, PICTURE, steps=2, seed=3)
    await kafka.send("jobs.requests", "job_request", request, request)
    [first] = await kafka.answers("jobs.responses", one)
    other = job_request(one, PICTURE, PICTURE, steps=3, seed=3)
    await kafka.send("jobs.requests", "job_request", other)
    async with vtryon.Client(office.target) as client:
        assert len([job async for job in client.jobs.list() if job.request_id == one]) == 1

    async def answers() -> list[dict]:
        found = await kafka.messages("jobs.responses", 10**6, seconds=1)
        return [kafka.read(answer.value) for answer in found if answer.key == first.key]

    async with asyncio.timeout(20):
        while len(said := await answers()) < 2:
            await asyncio.sleep(0.1)
    assert [answer["state"] for answer in said] == ["SUCCEEDED", "FAILED"]
    assert said[1]["error"]["reason"] == "ALREADY_EXISTS"
    assert said[1]["error"]["metadata"]["job_id"] == said[0]["job_id"]


async def test_tenants_have_jobs_of_their_own(kafka: Kafka, office: ServedMesh) -> None:
    one = name()
    request = job_request(one, PICTURE, PICTURE, steps=2)
    await kafka.send("jobs.requests", "job_request", request, x_vtryon_tenant="acme")
    [answer] = await kafka.answers("jobs.responses", one)
    assert dict(answer.headers)["x-vtryon-tenant"] == b"acme"
    job_id = kafka.read(answer.value)["job_id"]
    async with vtryon.Client(office.target) as client:
        with pytest.raises(vtryon.RequestError) as caught:
            await client.jobs.get(job_id)
        assert caught.value.reason is vtryon.Reason.NOT_FOUND
        assert (await client.acting_for("acme").jobs.get(job_id)).ended


async def test_options_out_of_range_are_answered_and_what_follows_is_done(kafka: Kafka) -> None:
    """One after the other of one key, so that a message that gets stuck is seen."""
    before, minus, long, behind = name(), name(), name(), name()
    asked = schema("job_request")
    schema_id = await asyncio.to_thread(kafka.register, "jobs.requests", asked)
    requests = {
        before: job_request(before, PICTURE, PICTURE, steps=1),
        minus: job_request(minus, PICTURE, PICTURE, steps=1, seed=-1),
        long: {**job_request(long, PICTURE, PICTURE), "labels": {"k": "x" * 500_000}},
        behind: job_request(behind, PICTURE, PICTURE, steps=1),
    }
    values = [written(asked, schema_id, one) for one in requests.values()]
    await kafka.send_raw("jobs.requests", *((b"in order", value) for value in values))
    answers = await kafka.answers("jobs.responses", *requests)
    said = [kafka.read(one.value) for one in answers]
    assert [one["state"] for one in said] == ["SUCCEEDED", "FAILED", "FAILED", "SUCCEEDED"]
    assert [said[index]["error"]["reason"] for index in (1, 2)] == ["FIELD_INVALID"] * 2
    assert said[2]["labels"] == {}  # not repeated
    letters = await kafka.messages("jobs.dlq", 10**6, seconds=1)
    assert [one.value for one in letters if one.key == b"in order"] == values[1:3]


async def test_a_header_that_is_too_long_is_refused(kafka: Kafka) -> None:
    one = name()
    request = job_request(one, PICTURE, PICTURE, steps=1)
    await kafka.send("jobs.requests", "job_request", request, correlation_id="c" * 300_000)
    [answer] = await kafka.answers("jobs.responses", one)
    assert kafka.read(answer.value)["error"]["reason"] == "FIELD_INVALID"
    assert "correlation-id" not in dict(answer.headers)


async def test_deadlines(kafka: Kafka) -> None:
    late, none, soon = name(), name(), name()
    request = lambda one: job_request(one, PICTURE, PICTURE, steps=200)  # noqa: E731
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    future = (datetime.now(UTC) + timedelta(seconds=0.4)).isoformat()
    await kafka.send("jobs.requests", "job_request", request(late), deadline=past)
    await kafka.send("jobs.requests", "job_request", request(none), deadline="tomorrow")
    await kafka.send("jobs.requests", "job_request", request(soon), deadline=future)
    answers = await kafka.answers("jobs.responses", late, none, soon)
    reasons = [kafka.read(one.value)["error"]["reason"] for one in answers]
    assert reasons == ["DEADLINE_PASSED", "FIELD_INVALID", "DEADLINE_PASSED"]
    assert dict(answers[0].headers)["reason"] == b"DEADLINE_PASSED"


def noise(seed: int = 0) -> bytes:
    """A picture too large for a message: more than 1 MiB of PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (700, 600, 3), np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class TestClaims:
    """The claim check: what is too large for a message."""

    @pytest.fixture
    def claims(self, folder: Path, kafka: Kafka) -> Path:
        return folder / "claims"

    def put(self, claims: Path, path: str, data: bytes, **changes: object) -> dict:
        target = claims / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        claim = {
            "name": path,
            "sha256": hashlib.sha256(data).hexdigest(),
            "byte_length": len(data),
        }
        return {"inline": None, "claim": {**claim, **changes}}

    async def test_a_large_picture(self, kafka: Kafka, claims: Path, office) -> None:
        one, picture = name(), noise()
        assert len(picture) > 1024 * 1024
        content = self.put(claims, f"mine/{one}.png", picture)
        request = {**job_request(one, PICTURE, PICTURE, steps=2, seed=1), "person": content}
        await kafka.send("jobs.requests", "job_request", request)
        [answer] = await kafka.answers("jobs.responses", one)
        assert kafka.read(answer.value)["state"] == "SUCCEEDED"

    async def test_the_person_of_an_erased_job_is_in_no_file(
        self, kafka: Kafka, claims: Path, office
    ) -> None:
        one, canary, garment = name(), noise(1), noise(2)
        request = {
            **job_request(one, PICTURE, PICTURE, steps=1),
            "person": self.put(claims, f"mine/{one}.png", canary),
            "garments": [self.put(claims, f"shop/{one}.png", garment)],
        }
        await kafka.send("jobs.requests", "job_request", request)
        [answer] = await kafka.answers("jobs.responses", one)
        said = kafka.read(answer.value)
        assert said["state"] == "SUCCEEDED"
        async with vtryon.Client(office.target) as client:
            await client.jobs.erase(said["job_id"])

        async def is_gone() -> bool:
            try:
                files = {one: one.read_bytes() for one in claims.parent.rglob("*") if one.is_file()}
            except FileNotFoundError:  # it was deleted meanwhile
                return False
            return not any(canary[:4096] in data for data in files.values()) and not any(
                said["job_id"] in file.parts for file in files
            )

        await until(is_gone)
        assert (claims / f"shop/{one}.png").read_bytes() == garment  # others may claim it

    async def test_claims_that_do_not_hold(self, kafka: Kafka, claims: Path) -> None:
        secret = claims.parent / "secret"
        secret.write_bytes(PICTURE)
        bad = {
            "another digest": (self.put(claims, "a", PICTURE, sha256="0" * 64), "PAYLOAD_INVALID"),
            "another length": (self.put(claims, "b", PICTURE, byte_length=9), "PAYLOAD_INVALID"),
            "too long": (self.put(claims, "c", b"", byte_length=2**40), "PAYLOAD_TOO_LARGE"),
            "none there": (self.put(claims, "d", PICTURE, name="nowhere"), "NOT_FOUND"),
            "outside": (self.put(claims, "e", PICTURE, name="../secret"), "PAYLOAD_INVALID"),
            "absolute": (self.put(claims, "f", PICTURE, name=str(secret)), "PAYLOAD_INVALID"),
            "a folder": (self.put(claims, "mine/x", PICTURE, name="mine"), "NOT_FOUND"),
            "both": ({**self.put(claims, "g", PICTURE), "inline": PICTURE}, "PAYLOAD_INVALID"),
            "neither": ({"inline": None, "claim": None}, "PAYLOAD_INVALID"),
        }
        ids = {case: name() for case in bad}
        requests = [
            {**job_request(ids[case], PICTURE, PICTURE, steps=1), "person": content}
            for case, (content, _) in bad.items()
        ]
        await kafka.send("jobs.requests", "job_request", *requests)
        answers = await kafka.answers("jobs.responses", *ids.values())
        found = {
            case: kafka.read(one.value)["error"]["reason"]
            for case, one in zip(bad, answers, strict=True)
        }
        assert found == {case: reason for case, (_, reason) in bad.items()}


async def test_what_cannot_be_read_is_kept_as_it_was(kafka: Kafka) -> None:
    another = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}
    other = kafka.register("other", another)
    request = await kafka.send(
        "jobs.requests", "job_request", job_request("bad id with spaces", PICTURE, PICTURE)
    )
    poison = {
        b"text": b"not avro at all",
        b"short": b"\0\0",
        b"unknown schema": b"\0\0\x0f\xff\xff" + b"x" * 40,
        b"another schema": written(another, other, {"x": 5}),
        b"cut": request[0][:-20],
        b"longer": request[0] + b"\0",
    }
    await kafka.send_raw("jobs.requests", *poison.items(), correlation_id="p")
    await kafka.send_raw("jobs.requests", (b"nothing", None), correlation_id="p")
    letters: dict[bytes, bytes] = {}
    async with kafka.reader("jobs.dlq") as reader, asyncio.timeout(30):
        while len(letters) < 8:
            for records in (await reader.getmany(timeout_ms=100)).values():
                for one in records:
                    headers = dict(one.headers)
                    if headers.get("correlation-id") == b"p" or one.key == b"bad id with spaces":
                        letters[one.key] = one.value
                        assert headers["from-topic"] == kafka.topic("jobs.requests").encode()
                        expected = b"FIELD_INVALID" if b"id" in one.key else b"MESSAGE_MALFORMED"
                        assert headers["reason"] == expected, one.key
                        assert headers["attempt"] == b"1", one.key  # it was never tried again
    assert letters == {**poison, b"nothing": None, b"bad id with spaces": request[0]}


@pytest.mark.timeout(300)
async def test_many_good_and_some_poisoned(kafka: Kafka, office: ServedMesh, chaos: bool) -> None:
    """200 and 20; 1,000 and 100 with `--chaos`."""
    run, count = name(), 1000 if chaos else 200
    good = [job_request(f"{run}-{number}", PICTURE, PICTURE, steps=1) for number in range(count)]
    asked = schema("job_request")
    schema_id = kafka.register("jobs.requests", asked)
    async with kafka.producer() as producer:
        for number, request in enumerate(good):
            value = written(asked, schema_id, request)
            await producer.send(
                kafka.topic("jobs.requests"), value, key=request["request_id"].encode()
            )
            if number % 10 == 0:
                await producer.send(
                    kafka.topic("jobs.requests"), f"poison {run}".encode(), key=f"{number}".encode()
                )
        await producer.flush()
    ids = [request["request_id"] for request in good]
    answers = await kafka.answers("jobs.responses", *ids, seconds=240)
    assert {kafka.read(one.value)["state"] for one in answers} == {"SUCCEEDED"}
    letters = await kafka.messages("jobs.dlq", 10**6, seconds=2)
    assert len([one for one in letters if one.value == f"poison {run}".encode()]) == count // 10
