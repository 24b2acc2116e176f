"""How answers are chosen and made: Accept, Idempotency-Key, event streams, pages."""

from __future__ import annotations

import re

import httpx
import pytest
from fastapi import Request
from tests.support.bad_input import PICTURE
from tests.support.rest import events_of

from vtryon.errors import RequestError
from vtryon.types import ImageFormat
from vtryon_services.bridges.rest.accept import Answer, wanted_answer
from vtryon_services.bridges.rest.app import create_app
from vtryon_services.bridges.rest.settings import RestSettings

FILES = [("person", PICTURE), ("garments", PICTURE)]
EVENTS = {"accept": "text/event-stream"}
PNG, JPEG, WEBP = ImageFormat.PNG, ImageFormat.JPEG, ImageFormat.WEBP


def accepting(*headers: str) -> Request:
    named = [(b"accept", one.encode()) for one in headers]
    return Request({"type": "http", "headers": named})


@pytest.mark.parametrize(
    ("accept", "answer", "picture"),
    [
        ((), Answer.PICTURE, None),
        (("*/*",), Answer.PICTURE, None),
        (("image/*",), Answer.PICTURE, None),
        (("image/jpeg;q=0.1, image/png;q=0.9",), Answer.PICTURE, PNG),
        (("image/webp;q=0, image/png",), Answer.PICTURE, PNG),
        (("application/json;q=0.2, text/event-stream;q=0, image/webp",), Answer.PICTURE, WEBP),
        (("*/*;q=0.1, application/json",), Answer.JSON, None),
        (("image/avif,image/webp,image/apng,image/*,*/*;q=0.8",), Answer.PICTURE, WEBP),
        (("image/*, image/png;q=0",), Answer.PICTURE, JPEG),
        (("*/*, image/*;q=0",), Answer.JSON, None),
        (("application/json, text/event-stream",), Answer.JSON, None),
        (("text/event-stream, application/json",), Answer.EVENTS, None),
        (("text/html", "application/json"), Answer.JSON, None),
        (("text/html,application/xhtml+xml,*/*;q=0.8",), Answer.PICTURE, None),
        (("IMAGE/JPEG ; Q=1.0",), Answer.PICTURE, JPEG),
        (("image/png;q=nonsense, image/jpeg",), Answer.PICTURE, JPEG),
        (("image/png;q=nan, image/jpeg;q=0.1",), Answer.PICTURE, JPEG),
        (("application/json;indent=2;q=0.5, image/webp;q=0.4",), Answer.JSON, None),
    ],
)
def test_accept_is_read_with_its_weights(
    accept: tuple[str, ...], answer: Answer, picture: ImageFormat | None
) -> None:
    assert wanted_answer(accepting(*accept)) == (answer, picture)


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "image/png;q=0", "nonsense"])
def test_what_is_not_offered_is_refused(accept: str) -> None:
    with pytest.raises(RequestError, match="Accept"):
        wanted_answer(accepting(accept))


async def test_a_key_stands_for_one_try_on_however_it_is_answered(jobs_http) -> None:
    jobs = set()
    for accept in ("text/event-stream", "image/png", "*/*", "application/json", "image/webp"):
        headers = {"accept": accept, "idempotency-key": "order-1"}
        answer = await jobs_http.post(
            "/v1/try-ons", files=FILES, data={"steps": 1}, headers=headers
        )
        assert answer.status_code == 200, answer.text
        if accept.startswith("image/"):
            assert answer.headers["content-type"] == accept
            jobs.add(answer.headers["x-vtryon-job"])
        if accept == "application/json":
            jobs.add(answer.json()["id"])
    assert len(jobs) == 1
    headers = {"idempotency-key": "order-1"}
    other = await jobs_http.post("/v1/try-ons", files=FILES, data={"steps": 2}, headers=headers)
    assert (other.status_code, other.json()["reason"]) == (409, "ALREADY_EXISTS")
    chosen = {"steps": 1, "format": "webp"}
    other = await jobs_http.post("/v1/try-ons", files=FILES, data=chosen, headers=headers)
    assert (other.status_code, other.json()["reason"]) == (409, "ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        *(("respond-async", 202), ("wait=10, Respond-Async; x=1", 202)),
        *(("no-respond-async", 200), ("wait=10", 200)),
    ],
)
async def test_prefer_is_read_by_whole_words(jobs_http, prefer: str, status: int) -> None:
    headers = {"prefer": prefer}
    answer = await jobs_http.post("/v1/try-ons", files=FILES, data={"steps": 1}, headers=headers)
    assert answer.status_code == status


async def test_every_event_stream_passes_proxies_at_once(jobs_http: httpx.AsyncClient) -> None:
    post = jobs_http.post
    job = (await post("/v1/jobs", files=FILES, data={"steps": 1})).json()["id"]
    edit = {"prompt": "wear it", "stream": "true", "steps": 1}
    streams = [
        await post("/v1/try-ons", files=FILES, data={"steps": 1}, headers=EVENTS),
        await post(
            "/v1/try-ons",
            files=FILES,
            data={"steps": 1},
            headers={**EVENTS, "idempotency-key": "stream"},
        ),
        await jobs_http.get(f"/v1/jobs/{job}/events"),
        await post("/v1/images/edits", files={"image": PICTURE}, data=edit),
    ]
    for answer in streams:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-store"


async def test_an_event_source_that_has_seen_all_is_told_to_stay_away(jobs_http) -> None:
    job = (await jobs_http.post("/v1/jobs", files=FILES, data={"steps": 1})).json()["id"]
    path = f"/v1/jobs/{job}/events"
    told = await jobs_http.get(path)
    last = int(re.findall(r"^id: ?(\d+)", told.text, re.MULTILINE)[-1])
    assert events_of(told.text)[-1][0] == "job"

    async def behind(event_id: object) -> httpx.Response:
        return await jobs_http.get(path, headers={"last-event-id": str(event_id)})

    assert (await behind(last)).status_code == 204
    assert (await behind(last + 7)).status_code == 204
    assert (await behind("")).text == told.text
    again = await behind(last - 1)
    assert re.findall(r"^id: ?(\d+)", again.text, re.MULTILINE) == [str(last)]
    for wrong in ("-1", "1.5", "x", "9" * 30, "²"):
        answer = await jobs_http.get(path, headers={"last-event-id": wrong.encode()})
        fields = [one["field"] for one in answer.json()["violations"]]
        assert (answer.status_code, fields) == (400, ["header.last-event-id"])


async def test_an_update_that_was_never_sent_is_refused(jobs_http: httpx.AsyncClient) -> None:
    made = await jobs_http.post("/v1/jobs", files=FILES, data={"steps": 200})
    path = f"/v1/jobs/{made.json()['id']}"
    answer = await jobs_http.get(f"{path}/events", headers={"last-event-id": "100000"})
    assert answer.status_code == 400, answer.text
    await jobs_http.delete(path)


async def test_the_pages_load_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|<link|src=|https?://", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    document = (await http.get("/openapi.json")).json()
    for path in document["paths"]:
        assert path in page.text
    for field in ("negative_prompt", "true_cfg_scale", "output_compression", "idempotency-key"):
        assert field in page.text


async def test_the_root_says_what_this_is(http: httpx.AsyncClient) -> None:
    about = (await http.get("/")).json()
    assert about["name"] == "vtryon"
    for path in (about["docs"], about["openapi"]):
        assert (await http.get(path)).status_code == 200
    page = await http.get("/", headers={"accept": "text/html"})
    assert 'href="/docs"' in page.text


def test_in_production_there_is_no_page_of_the_routes() -> None:
    app = create_app(RestSettings.load(profile="production"))
    assert not [one for one in app.routes if getattr(one, "path", "") == "/docs"]
