"""Every stage on its own topics, try-ons that go from one to the next, and failures."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.kafka import Kafka, inline, job_request
from tests.support.pictures import png
from tests.support.processes import VTRYON, ServedMesh

import vtryon
from vtryon.errors import StageError
from vtryon.events import Event
from vtryon.types import DecodeStart, Stage
from vtryon.v1 import decoding_pb2
from vtryon.wire.stream import DECODE, StreamCall
from vtryon_services.bridges.kafka.bridge import begin
from vtryon_services.bridges.kafka.messages import CORRELATION
from vtryon_services.bridges.kafka.route import ROUTE
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.call import Call, Incoming
from vtryon_services.rpc.method import Method
from vtryon_services.rpc.serve import Server
from vtryon_services.stages.decoding.settings import DecodingSettings

PICTURE = png()


def name() -> str:
    return uuid.uuid4().hex[:12]


def picture(kind: str = "image") -> dict[str, Any]:
    return {"kind": kind, "tensor": None, "image": {"format": "png"}, "content": inline(PICTURE)}


def request(request_id: str, *payloads: dict, **options: Any) -> dict[str, Any]:
    return {"request_id": request_id, "options": options, "payloads": list(payloads)}


async def test_a_try_on_goes_from_topic_to_topic(chain: Kafka, office: ServedMesh) -> None:
    one = name()
    asked = job_request(one, PICTURE, PICTURE, steps=4, seed=5)
    await chain.send("jobs.requests", "job_request", asked, asked, correlation_id="c")
    [answer] = await chain.answers("jobs.responses", one)
    said = chain.read(answer.value)
    async with vtryon.Client(office.target) as client:
        drawn = await client.try_on(PICTURE, PICTURE, prompt="", steps=4, seed=5)
        assert [job async for job in client.jobs.list() if job.request_id == one] == []
    assert said["picture"]["content"]["inline"] == drawn.picture.data
    assert [hop["stage"] for hop in said["hops"]] == list(ROUTE[:-1])
    assert said["wall_seconds"] > 0
    # Sent twice, it came twice, and was the same twice.
    found = await chain.messages("jobs.responses", 10**6, seconds=3)
    both = [chain.read(other.value) for other in found if other.key == answer.key]
    assert len(both) == 2
    assert both[0]["job_id"] == both[1]["job_id"]
    assert both[0]["picture"] == both[1]["picture"]
    events = [
        chain.read(event.value)
        for event in await chain.messages("jobs.events", 10**6, seconds=2)
        if event.key == one.encode()
    ]
    told = {event["sequence"]: event["state"] for event in events}
    assert told == {1: "QUEUED", 2: "RUNNING", 3: "SUCCEEDED"}


async def test_a_seed_that_is_not_given_is_the_same_for_the_same_request(chain: Kafka) -> None:
    """Also where it is sent again; another tenant's of the same id has another."""
    one = name()
    asked = job_request(one, PICTURE, PICTURE, steps=1)
    await chain.send("jobs.requests", "job_request", asked, asked)
    await chain.send("jobs.requests", "job_request", asked, x_vtryon_tenant="acme")
    seeds: dict[bytes, list[int]] = {}
    async with chain.reader("jobs.responses") as reader, asyncio.timeout(60):
        while sum(map(len, seeds.values())) < 3:
            for records in (await reader.getmany(timeout_ms=100)).values():
                for answer in records:
                    if answer.key == one.encode():
                        tenant = dict(answer.headers).get("x-vtryon-tenant", b"")
                        seeds.setdefault(tenant, []).append(chain.read(answer.value)["seed"])
    assert len(seeds[b""]) == 2
    assert len(set(seeds[b""])) == 1
    assert seeds[b"acme"][0] not in seeds[b""]
    assert 0 <= seeds[b""][0] < 2**53


async def test_one_id_is_not_two_requests(chain: Kafka) -> None:
    one = name()
    await chain.send("jobs.requests", "job_request", job_request(one, PICTURE, PICTURE, steps=1))
    [answer] = await chain.answers("jobs.responses", one)
    assert chain.read(answer.value)["state"] == "SUCCEEDED"
    other = job_request(one, PICTURE, png(colour="red"), steps=1)
    await chain.send("jobs.requests", "job_request", other, correlation_id="other")
    async with chain.reader("jobs.responses") as reader, asyncio.timeout(60):
        found: list[Any] = []
        while not found:
            for records in (await reader.getmany(timeout_ms=100)).values():
                found += [
                    one for one in records if (CORRELATION, b"other") in [*map(tuple, one.headers)]
                ]
    assert chain.read(found[0].value)["error"]["reason"] == "ALREADY_EXISTS"


async def test_a_deadline_goes_with_a_try_on_from_topic_to_topic(chain: Kafka) -> None:
    one = name()
    asked = {**job_request(one, PICTURE, PICTURE, steps=1), "timeout_seconds": 300.0}
    await chain.send("jobs.requests", "job_request", asked)
    await chain.answers("jobs.responses", one)
    deadlines = set()
    for stage in ROUTE[:-1]:
        async with chain.reader(f"{stage}.requests") as reader, asyncio.timeout(60):
            found = None
            while found is None:
                for records in (await reader.getmany(timeout_ms=100)).values():
                    found = next((one_ for one_ in records if one_.key == one.encode()), found)
        deadlines.add(dict(found.headers).get("deadline"))
    assert len(deadlines) == 1
    assert deadlines != {None}


async def test_each_stage_alone(chain: Kafka, office: ServedMesh) -> None:
    ids = {stage: name() for stage in ROUTE[:-1]}
    encoder = request(ids["latent-encoder"], picture(), picture())
    await chain.send("latent-encoder.requests", "stage_request", encoder)
    text = request(ids["text-encoder"], picture(), prompt="a coat")
    await chain.send("text-encoder.requests", "stage_request", text)
    [latents] = await chain.answers("latent-encoder.responses", ids["latent-encoder"])
    [embedded] = await chain.answers("text-encoder.responses", ids["text-encoder"])
    encoded = chain.read(latents.value)["payloads"]
    embeddings = chain.read(embedded.value)["payloads"]
    assert [one["kind"] for one in (*encoded, *embeddings)] == ["latents", "latents", "embeddings"]
    fits = chain.read(latents.value)["fits"]
    assert len(fits) == 2
    assert min(min(one["from_width"], one["to_width"]) for one in fits) > 0
    async with vtryon.Client(office.target) as client:
        same = await client.latent_encoder.encode([PICTURE])
        assert bytes(same[0].data) == encoded[0]["content"]["inline"]
    references = [{**one, "kind": "reference_latents"} for one in encoded]
    sampled = request(ids["sampling"], *embeddings, *references, steps=3, seed=1)
    await chain.send("sampling.requests", "stage_request", sampled, priority="interactive")
    [answer] = await chain.answers("sampling.responses", ids["sampling"])
    said = chain.read(answer.value)
    assert said["hops"][0]["stage"] == "sampling"
    decoded = request(ids["decoding"], *said["payloads"])
    await chain.send("decoding.requests", "stage_request", decoded)
    [answer] = await chain.answers("decoding.responses", ids["decoding"])
    [drawn] = chain.read(answer.value)["payloads"]
    assert drawn["image"]["format"] == "png"
    assert drawn["content"]["inline"][1:4] == b"PNG"


async def test_stages_in_a_row(chain: Kafka) -> None:
    one = name()
    options = {"steps": 2, "seed": 1, "true_cfg_scale": 4.0}  # guides nothing without a prompt
    asked = {**request(one, picture(), **options), "route": ["latent-encoder", "sampling"]}
    await chain.send("text-encoder.requests", "stage_request", asked)
    [answer] = await chain.answers("sampling.responses", one)
    said = chain.read(answer.value)
    assert [payload["kind"] for payload in said["payloads"]] == ["latents"]
    assert len(said["hops"]) == 3
    assert [option["field"] for option in said["unused_options"]] == ["true_cfg_scale"]
    assert len(said["fits"]) == 1
    assert set(said["model_digests"]) == {"latent-encoder", "text-encoder", "sampling"}
    assert all(len(digest) == 64 for digest in said["model_digests"].values())


async def test_what_a_stage_refuses(chain: Kafka) -> None:
    bad = {
        "no pictures": ("latent-encoder", request(name()), {}),
        "a long prompt": ("text-encoder", request(name(), picture(), prompt="x" * 2001), {}),
        "no latents": ("decoding", request(name()), {}),
        "another way": ("decoding", {**request(name()), "route": ["sampling"]}, {}),
        "a tensor of another shape": (
            "decoding",
            request(
                name(),
                {
                    "kind": "latents",
                    "tensor": {"data_type": "FP32", "shape": [16, 2, 2]},
                    "image": None,
                    "content": inline(b"1234"),
                },
            ),
            {},
        ),
        "embeddings that no stage takes": (
            "text-encoder",
            {**request(name(), picture()), "route": ["latent-encoder"]},
            {},
        ),
        "a picture for the sampler": ("sampling", request(name(), picture()), {}),
        "a garment for the decoder": ("decoding", request(name(), picture("garment_image")), {}),
        "a kind that nobody knows": ("decoding", request(name(), picture("film")), {}),
        "a priority that nobody knows": (
            "latent-encoder",
            request(name(), picture()),
            {"priority": "now"},
        ),
    }
    for case, (stage, asked, headers) in bad.items():
        await chain.send(f"{stage}.requests", "stage_request", asked, **headers)
        [answer] = await chain.answers(f"{stage}.responses", asked["request_id"])
        said = chain.read(answer.value)
        assert said["error"]["reason"] in {"FIELD_INVALID", "PAYLOAD_INVALID"}, case
        assert said["payloads"] == []


async def test_a_try_on_with_unreadable_options_is_answered(chain: Kafka) -> None:
    asked = request(name(), picture("person_image"), seed="abc")
    asked |= {"route": [*ROUTE[1:]], "job_id": name()}
    await chain.send("text-encoder.requests", "stage_request", asked)
    [answer] = await chain.answers("jobs.responses", asked["request_id"])
    said = chain.read(answer.value)
    assert (said["error"]["reason"], said["seed"]) == ("FIELD_INVALID", None)


class Frail:
    """The decoder, which fails until it is well."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.calls = 0
        self.well_after = 10**9

    async def decode(
        self, start: DecodeStart, incoming: Incoming, call: Call
    ) -> AsyncIterator[Event]:
        buffers = await incoming.receive()
        self.calls += 1
        if self.calls <= self.well_after:
            raise StageError("the decoder is not well")
        outgoing = [
            vtryon.wire.payloads.Outgoing(payload, data)
            for payload, data in zip(start.payloads, buffers, strict=True)
        ]
        async with (
            vtryon.Client(self.target) as client,
            StreamCall(client.channel, DECODE, start, outgoing) as call,
        ):
            async for event in call:
                yield event


@pytest.fixture
async def frail(office: ServedMesh, kafka_servers: Kafka, tmp_path: Path):
    """A bridge for stages whose decoder fails; where, and the decoder."""
    settings = DecodingSettings.load(listen="127.0.0.1:0")
    server, decoder = Server(settings), Frail(office.target)
    address = server.bind("127.0.0.1:0")
    method = Method("Decode", decoding_pb2.DecodeRequest, DecodeStart, decoder.decode)
    name = "vtryon.v1.DecodingService"
    await server.start([Service(Stage.DECODING, name, (method,), settings)])
    kafka = replace(kafka_servers, prefix="frail")
    await asyncio.to_thread(kafka.create_topics)
    given = {
        "bootstrap_servers": kafka.servers,
        "registry_url": kafka.url,
        "prefix": kafka.prefix,
        "retry_seconds": (0.2, 0.4),
        "pipeline_target": office.target,
        "decoding_target": address,
        "serves": "all",
        "topology": "kafka",
        "claims_url": str(tmp_path / "claims"),
        "request_timeout_seconds": 6,
        "claim_bytes": 100,
        "listen": "127.0.0.1:0",
    }
    async with begin(KafkaSettings.load(**given)):
        yield kafka, decoder
    await server.stop()


def dlq(kafka: Kafka, *arguments: str) -> Any:
    done = subprocess.run(
        [VTRYON, "dlq", *arguments, "--json"],
        env={**os.environ, **kafka.variables()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout)


async def test_failures_are_tried_again_kept_and_sent_again(frail, office, tmp_path: Path) -> None:
    kafka, decoder = frail
    one, two = name(), name()
    asked = [job_request(each, PICTURE, PICTURE, steps=2, seed=9) for each in (one, two)]
    await kafka.send("jobs.requests", "job_request", *asked, correlation_id="c-9")
    answers = await kafka.answers("jobs.responses", one, two)
    assert decoder.calls == 6  # three attempts each
    for answer in answers:
        said = kafka.read(answer.value)
        assert (said["state"], said["error"]["reason"]) == ("FAILED", "STAGE_FAILED")
    letters = await asyncio.to_thread(dlq, kafka, "list", "decoding")
    assert {letter["request"] for letter in letters} == {one, two}
    assert {letter["attempts"] for letter in letters} == {3}
    assert {letter["reason"] for letter in letters} == {"STAGE_FAILED"}
    raw = tmp_path / "letter"
    first = str(letters[0]["offset"])
    shown = await asyncio.to_thread(dlq, kafka, "show", "decoding", first, "--raw", str(raw))
    assert shown["record"]["route"] == ["jobs"]
    assert shown["headers"]["correlation-id"] == "c-9"
    assert kafka.read(raw.read_bytes())["request_id"] == letters[0]["request"]
    decoder.well_after = 0
    # The first goes on from the text encoder, the second from where it was.
    sent = await asyncio.to_thread(
        dlq, kafka, "redrive", "decoding", first, "--from-stage", "text-encoder"
    )
    assert [letter["sent_to"] for letter in sent["letters"]] == ["frail.text-encoder.requests"]
    sent = await asyncio.to_thread(dlq, kafka, "redrive", "decoding", str(letters[1]["offset"]))
    assert [letter["sent_to"] for letter in sent["letters"]] == ["frail.decoding.requests"]

    async def drawn() -> list[dict]:
        found = [
            kafka.read(answer.value)
            for answer in await kafka.messages("jobs.responses", 10**6, seconds=1)
        ]
        return [said for said in found if said["state"] == "SUCCEEDED"]

    async with asyncio.timeout(30):
        while len(said := await drawn()) < 2:
            await asyncio.sleep(0.1)
    async with vtryon.Client(office.target) as client:
        expected = await client.try_on(PICTURE, PICTURE, prompt="", steps=2, seed=9)
    for answer in said:
        claim = answer["picture"]["content"]["claim"]
        assert (tmp_path / "claims" / claim["name"]).read_bytes() == expected.picture.data
    again = await asyncio.to_thread(dlq, kafka, "redrive", "decoding")
    assert again["sent"] == 2  # no offsets named: all that were not sent so before
    assert (await asyncio.to_thread(dlq, kafka, "redrive", "decoding"))["sent"] == 0
    listed = await asyncio.to_thread(dlq, kafka, "list", "decoding")
    assert all(letter["redriven"] for letter in listed)


async def test_a_letter_that_can_not_be_sent_again_is_not_passed_over(kafka_servers: Kafka) -> None:
    """Later ones are sent, and sent twice rather than the first of them lost."""
    kafka = replace(kafka_servers, prefix="letters")  # no bridge reads what is sent again
    await asyncio.to_thread(kafka.create_topics)
    ids = [name() for _ in range(3)]
    routes = (["jobs"], [], ["jobs"])  # the second is for one stage, and goes on from no other
    letters = [{**request(one), "route": route} for one, route in zip(ids, routes, strict=True)]
    await kafka.send("decoding.dlq", "stage_request", *letters)

    async def redriven(*arguments: str) -> tuple[int, list[tuple[int, bool]]]:
        said = await asyncio.to_thread(dlq, kafka, "redrive", "decoding", *arguments)
        return said["sent"], [(one["offset"], not one["error"]) for one in said["letters"]]

    earlier = ("--from-stage", "text-encoder")
    assert await redriven(*earlier) == (2, [(0, True), (1, False), (2, True)])
    listed = await asyncio.to_thread(dlq, kafka, "list", "decoding")
    assert [one["redriven"] for one in listed] == [True, False, False]
    assert await redriven(*earlier) == (1, [(1, False), (2, True)])
    assert await redriven() == (2, [(1, True), (2, True)])
    assert await redriven() == (0, [])


async def test_what_dlq_refuses(chain: Kafka) -> None:
    for arguments, words in (
        (("list", "film"), "there are dead letters of"),
        (("show", "jobs", "12345"), "there is no dead letter"),
        (("redrive", "decoding", "--from-stage", "film"), "from_stage"),
    ):
        said = await asyncio.to_thread(dlq, chain, *arguments)
        assert words in said["error"]["message"]
