"""The REST interface: the same pictures, events, limits and reasons as the gRPC interface."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time

import httpx
import numpy as np
import pytest
from tests.support.bad_input import OPTIONS, PICTURE, PICTURES
from tests.support.pictures import decoded
from tests.support.rest import events_of, form_field, plainly

import vtryon
from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings

FILES = [("person", PICTURE), ("garments", PICTURE)]
B64 = base64.b64encode(PICTURE).decode()


async def test_a_form_draws_what_grpc_draws(drawing_http, client, example) -> None:
    person, garment = (
        vtryon.pictures.read_picture(one) for one in (example.person, example.garment)
    )
    answer = await drawing_http.post(
        "/v1/try-ons",
        files=[("person", person), ("garments", garment)],
        data={"prompt": example.prompt, "steps": 4, "seed": 7},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-vtryon-seed"] == "7"
    assert "sampling;dur=" in answer.headers["server-timing"]
    drawn = await client.try_on(person, garment, example.prompt, steps=4, seed=7)
    difference = decoded(answer.content).astype(int) - drawn.picture.to_numpy()
    assert np.abs(difference).max() <= 1


async def test_stage_by_stage_draws_what_a_try_on_draws(drawing_http, client, example) -> None:
    person, garment = (
        vtryon.pictures.read_picture(one) for one in (example.person, example.garment)
    )
    pictures = [("pictures", person), ("pictures", garment)]
    post = drawing_http.post
    texts = await post("/v1/stages/text-encoder", files=pictures, data={"prompt": example.prompt})
    latents = await post("/v1/stages/latent-encoder", files=pictures)
    files = [("embeddings", texts.content), ("latents", latents.content)]
    sampled = await post("/v1/stages/sampling", files=files, data={"steps": 4, "seed": 7})
    picture = await post("/v1/stages/decoding", files=[("latents", sampled.content)])
    drawn = await client.try_on(person, garment, example.prompt, steps=4, seed=7)
    assert np.abs(decoded(picture.content).astype(int) - drawn.picture.to_numpy()).max() <= 1


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_accept_chooses_the_format(drawing_http, example, kind: str) -> None:
    files = [("person", vtryon.pictures.read_picture(example.person))]
    headers = {"accept": f"image/{kind}"}
    answer = await drawing_http.post("/v1/try-ons", files=files, data={"steps": 1}, headers=headers)
    assert answer.headers["content-type"] == f"image/{kind}"
    assert decoded(answer.content).shape[2] == 3


async def test_json_in_and_out(http) -> None:
    body = {"person": B64, "garments": [B64], "steps": 2, "seed": 5, "prompt": "wear it"}
    answer = await http.post("/v1/try-ons", json=body, headers={"accept": "application/json"})
    told = answer.json()
    assert told["seed"] == 5
    assert base64.b64decode(told["picture"]["data"])
    assert told["ledger"]["wall_seconds"] > 0


async def test_events_come_in_the_grammars_order_and_end_with_the_picture(http) -> None:
    headers = {"accept": "text/event-stream"}
    arrived: list[float] = []
    text = ""
    async with http.stream(
        "POST", "/v1/try-ons", files=FILES, data={"steps": 5}, headers=headers
    ) as answer:
        async for piece in answer.aiter_text():
            arrived.append(time.monotonic())
            text += piece
    names = [name for name, _ in events_of(text)]
    assert names[0] == "accepted"
    assert names.count("step_finished") == 5
    assert names[-1] == "finished"
    assert arrived[-1] - arrived[0] > 4 * 0.02  # as they happen, not at the end
    assert dict(events_of(text))["finished"]["picture"]["data"]


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"many previews"}))  # no such field here
async def test_options_out_of_range_are_refused_as_by_grpc(http, name: str) -> None:
    options, field = OPTIONS[name]
    plain = {key: plainly(value) for key, value in options.items()}
    body = json.dumps({"person": B64, "garments": [B64], **plain})
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/try-ons", content=body, headers=headers)
    problem = answer.json()
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["reason"] in {"FIELD_INVALID", "NUMERICS_UNSUPPORTED"}
    assert problem["request_id"] == answer.headers["x-request-id"]
    if field is not None:
        assert [one["field"] for one in problem["violations"]] == [field]
    assert "xxx" not in answer.text
    form = {key: form_field(value) for key, value in plain.items()}
    if "a\0b" not in form.values():
        again = await http.post("/v1/try-ons", files=FILES, data=form)
        assert again.status_code == 400
        assert again.json()["reason"] == problem["reason"]


@pytest.mark.parametrize("name", PICTURES)
async def test_pictures_that_are_none_are_refused_as_by_grpc(drawing_http, name: str) -> None:
    data, reason = PICTURES[name]
    files = [("person", data), ("garments", PICTURE)]
    answer = await drawing_http.post("/v1/try-ons", files=files, data={"steps": 1})
    problem = answer.json()
    assert problem["reason"] == f"PICTURE_{reason}"
    assert answer.status_code == (415 if reason == "FORMAT_UNSUPPORTED" else 400)
    assert problem["metadata"]["stage"] in {"latent-encoder", "text-encoder"}
    assert "/" not in problem["detail"]


BODIES = {
    "no JSON": ("application/json", b"{", 400, "MESSAGE_MALFORMED"),
    "a JSON list": ("application/json", b"[]", 400, "MESSAGE_MALFORMED"),
    "deep JSON": ("application/json", b"[" * 100_000, 400, "MESSAGE_MALFORMED"),
    "no UTF-8": ("application/json", b'{"prompt": "\xff\xfe"}', 400, "MESSAGE_MALFORMED"),
    "a lone surrogate": (
        "application/json",
        json.dumps({"person": B64, "prompt": "\ud800"}).encode(),
        400,
        "FIELD_INVALID",
    ),
    "no person": ("application/json", b"{}", 400, "FIELD_INVALID"),
    "no base64": ("application/json", b'{"person": "?"}', 400, "FIELD_INVALID"),
    "an empty person": ("application/json", b'{"person": ""}', 400, "PAYLOAD_INVALID"),
    "an unknown field": (
        "application/json",
        json.dumps({"person": B64, "stepz": 3}).encode(),
        400,
        "FIELD_INVALID",
    ),
    "no boundary": ("multipart/form-data", b"--x", 400, "MESSAGE_MALFORMED"),
    "a cut form": ("multipart/form-data; boundary=x", b"--x\r\nContent-", 400, None),
    "another kind": ("text/plain", b"hello", 400, "MESSAGE_MALFORMED"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_bodies_that_are_none_are_refused(http, name: str) -> None:
    kind, body, status, reason = BODIES[name]
    answer = await http.post("/v1/try-ons", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert reason in {None, answer.json()["reason"]}
    assert (await http.post("/v1/try-ons", files=FILES, data={"steps": 1})).status_code == 200


async def test_a_picture_over_the_limit_is_refused_with_the_reason_of_every_interface(http) -> None:
    files = [("person", b"x" * (vtryon.types.MAX_PICTURE_BYTES + 1))]
    answer = await http.post("/v1/try-ons", files=files)
    assert (answer.status_code, answer.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_bodies_over_the_limit_and_callers_over_it(scripted_mesh: str) -> None:
    settings = RestSettings.load(
        listen="127.0.0.1:0",
        pipeline_target=scripted_mesh,
        max_body_bytes=4096,
        max_requests=2,
        keepalive_seconds=0.1,
    )

    async def endless():
        for _ in range(100):
            yield b"x" * 1000

    async with (
        begin(settings) as began,
        httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as http,
    ):
        declared = await http.post("/v1/try-ons", content=b"x" * 5000)
        headers = {"content-type": "application/json"}
        counted = await http.post("/v1/try-ons", content=endless(), headers=headers)
        for answer in (declared, counted):
            assert (answer.status_code, answer.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")
        many = [http.post("/v1/try-ons", files=FILES, data={"steps": 200}) for _ in range(4)]
        codes = sorted(one.status_code for one in await asyncio.gather(*many))
        assert codes[:2] == [200, 200]
        assert codes[-1] == 429


async def test_bodies_together_over_the_limit(scripted_mesh: str) -> None:
    settings = RestSettings.load(
        listen="127.0.0.1:0", pipeline_target=scripted_mesh, max_bodies_bytes=1000
    )
    async with (
        begin(settings) as began,
        httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as http,
    ):
        many = [http.post("/v1/try-ons", files=FILES, data={"steps": 200}) for _ in range(4)]
        answers = await asyncio.gather(*many)
        assert {one.status_code for one in answers} == {200, 429}
        refused = next(one for one in answers if one.status_code == 429)
        assert refused.json()["reason"] == "QUEUE_FULL"
        assert refused.headers["retry-after"] == "1"
        after = await http.post("/v1/try-ons", files=FILES, data={"steps": 1})
        assert after.status_code == 200


async def test_silence_is_filled_with_comments(scripted_mesh: str) -> None:
    settings = RestSettings.load(
        listen="127.0.0.1:0", pipeline_target=scripted_mesh, keepalive_seconds=0.005
    )
    headers = {"accept": "text/event-stream"}
    async with (
        begin(settings) as began,
        httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as http,
    ):
        answer = await http.post("/v1/try-ons", files=FILES, data={"steps": 2}, headers=headers)
    assert ": ping" in answer.text
    assert events_of(answer.text)[-1][0] == "finished"


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
async def test_a_dropped_connection_frees_the_slot(rest, scripted, accept: str) -> None:
    """The scripted mesh has two places; both are held by callers who then vanish."""

    async def hold() -> None:
        async with (
            httpx.AsyncClient(base_url=rest) as http,
            http.stream(
                "POST",
                "/v1/try-ons",
                files=FILES,
                data={"steps": 200},
                headers={"accept": accept},
                timeout=0.5,
            ) as answer,
        ):
            async with asyncio.timeout(0.5):
                async for _ in answer.aiter_raw():
                    pass

    await asyncio.gather(hold(), hold(), return_exceptions=True)
    started = time.monotonic()
    await scripted.try_on(PICTURE, PICTURE, steps=1)
    assert time.monotonic() - started < 2  # what they hold would take them four


async def test_a_stage_that_is_away_is_a_503_and_readiness_says_so() -> None:
    settings = RestSettings.load(listen="127.0.0.1:0", pipeline_target="127.0.0.1:1")
    async with (
        begin(settings) as began,
        httpx.AsyncClient(base_url=f"http://{began.address}", timeout=30) as http,
    ):
        answer = await http.post("/v1/try-ons", files=FILES, data={"steps": 1})
        assert (answer.status_code, answer.json()["reason"]) == (503, "STAGE_UNAVAILABLE")
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200


async def test_a_deadline_is_kept_and_told(http) -> None:
    data = {"steps": 200, "timeout_seconds": 0.3}
    answer = await http.post("/v1/try-ons", files=FILES, data=data)
    problem = answer.json()
    assert (answer.status_code, problem["reason"]) == (422, "DEADLINE_PASSED")


async def test_a_failure_on_the_way_is_the_streams_last_event(http) -> None:
    answer = await http.post(
        "/v1/try-ons",
        files=FILES,
        data={"steps": 200, "timeout_seconds": 0.3},
        headers={"accept": "text/event-stream"},
    )
    assert answer.status_code == 200
    name, problem = events_of(answer.text)[-1]
    assert (name, problem["reason"]) == ("error", "DEADLINE_PASSED")


async def test_paths_and_methods_that_are_none_are_problems(http) -> None:
    for answer in (await http.get("/v1/nowhere"), await http.get("/v1/try-ons")):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
    unknown = await http.get("/v1/nowhere")
    assert "/openapi.json" in unknown.json()["detail"]
    assert unknown.headers["link"] == '</openapi.json>; rel="service-desc"'
    refused = await http.post("/v1/try-ons", files=FILES, headers={"accept": "text/html"})
    assert refused.status_code == 400


async def test_a_callers_request_id_is_kept_if_it_is_one(http) -> None:
    told = await http.get("/healthz", headers={"x-request-id": "mine-1"})
    assert told.headers["x-request-id"] == "mine-1"
    made = await http.get("/healthz", headers={"x-request-id": "with space"})
    assert len(made.headers["x-request-id"]) == 32


async def test_not_a_number_is_no_shift(http) -> None:
    body = json.dumps({"person": B64, "profile": "comfy", "numerics": {"shift": math.nan}})
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/try-ons", content=body, headers=headers)
    assert [one["field"] for one in answer.json()["violations"]] == ["numerics.shift"]
