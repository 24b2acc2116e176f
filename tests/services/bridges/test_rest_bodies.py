"""Bodies as browsers and clients write them, and bodies that would cost too much."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message
from tests.support.bad_input import PICTURE
from tests.support.rest import events_of

from vtryon.errors import RequestError
from vtryon.v1.numerics_pb2 import Numerics
from vtryon.v1.pipeline_pb2 import TryOnOptions
from vtryon.v1.sampling_pb2 import SampleStart
from vtryon.v1.stream_pb2 import PreviewPolicy
from vtryon_services.bridges.rest.bodies import NumericsBody, PreviewsBody, TryOnFields
from vtryon_services.bridges.rest.images import ImageEdit
from vtryon_services.bridges.rest.json_text import MAX_DEPTH, read_json_text
from vtryon_services.bridges.rest.stages import SampleForm

STAGES = ("latent-encoder", "text-encoder", "sampling", "decoding")
B64 = base64.b64encode(PICTURE).decode()
EDGE = "----test"


def form(*parts: tuple[str, bytes, bytes]) -> dict[str, Any]:
    """A multipart body, each part with what follows its name, and its bytes."""
    body = b"".join(
        f'--{EDGE}\r\ncontent-disposition: form-data; name="{name}"'.encode()
        + (more + b"\r\n\r\n" + data + b"\r\n")
        for name, more, data in parts
    )
    content = body + f"--{EDGE}--\r\n".encode()
    return {
        "content": content,
        "headers": {"content-type": f'multipart/form-data; boundary="{EDGE}"'},
    }


NAMED = b'; filename="p.png"\r\ncontent-type: image/png'
BLANK = b'; filename=""\r\ncontent-type: application/octet-stream'
PERSON = ("person", NAMED, PICTURE)
FEW = ("steps", b"", b"1")


async def test_a_mark_at_the_beginning_of_a_field_is_no_text(http: httpx.AsyncClient) -> None:
    marked = {"steps": "\ufeff1", "prompt": "\ufeffa shirt"}
    answer = await http.post("/v1/try-ons", files={"person": PICTURE}, data=marked)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "parts",
    [
        [PERSON, ("garments", NAMED, PICTURE), ("garments", BLANK, b""), FEW],
        [PERSON, ("garments[]", NAMED, PICTURE), ("mask", BLANK, b""), FEW],
        [("person", b"", PICTURE), ("garments", b"\r\ncontent-type: image/png", PICTURE), FEW],
        [PERSON, ("steps", b'; filename="blob"\r\ncontent-type: text/plain', b"1")],
        [PERSON, FEW, ("seed", b"", b""), ("format", b"", b"")],
        [PERSON, FEW, ("numerics", b"\r\ncontent-type: application/json", b"{}")],
    ],
    ids=["blank file", "blank unknown", "no file name", "field as file", "blank fields", "JSON"],
)
async def test_forms_are_read_as_browsers_and_clients_write_them(
    http: httpx.AsyncClient, parts: list[tuple[str, bytes, bytes]]
) -> None:
    answer = await http.post("/v1/try-ons", **form(*parts))
    assert answer.status_code == 200, answer.text


async def test_a_large_file_needs_no_file_name(drawing_http: httpx.AsyncClient) -> None:
    large = PICTURE + b"\0" * 90_000
    answer = await drawing_http.post("/v1/try-ons", **form(("person", b"", large), FEW))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([PERSON, PERSON], "person"),
        ([FEW], "person"),
        ([PERSON, ("mask", NAMED, PICTURE)], "mask"),
        ([PERSON, ("mask", b"\r\ncontent-type: image/png", PICTURE)], "mask"),
        ([PERSON, FEW, FEW], "steps"),
        ([PERSON, ("prompt", b"", b"\xff\xfe")], "prompt"),
        ([PERSON, ("prompt", b"", b"x" * 70_000)], "prompt"),
        ([PERSON, ("numerics", b"", b"[" * 60_000)], "numerics"),
        ([PERSON, ("numerics", b"", b'{"shift": 1, "shift": 2}')], "numerics"),
    ],
    ids=[
        *("two persons", "none", "unknown file", "unknown part", "twice", "no UTF-8", "long"),
        *("deep numerics", "a number twice"),
    ],
)
async def test_what_a_form_brings_too_much_is_refused_by_name(
    http: httpx.AsyncClient, parts: list[tuple[str, bytes, bytes]], field: str
) -> None:
    answer = await http.post("/v1/try-ons", **form(*parts))
    assert answer.status_code == 400, answer.text
    assert [one["field"] for one in answer.json()["violations"]] == [field]


async def test_forms_with_many_parts_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/try-ons", **form(*[("steps", b"", b"1")] * 10_000))
    assert (answer.status_code, answer.json()["reason"]) == (400, "MESSAGE_MALFORMED")
    long = ("steps", b"\r\nx-long: " + b"y" * 100_000, b"1")
    answer = await http.post("/v1/try-ons", **form(long))
    assert (answer.status_code, answer.json()["reason"]) == (400, "MESSAGE_MALFORMED")


async def test_an_empty_negative_prompt_is_the_same_by_every_route(
    drawing_http: httpx.AsyncClient,
) -> None:
    how = {"steps": 2, "seed": 3, "true_cfg_scale": 4.0, "prompt": "wear it"}
    asked = {"person": B64, **how}
    png = {"accept": "image/png"}
    none = await drawing_http.post("/v1/try-ons", json=asked, headers=png)
    empty = await drawing_http.post(
        "/v1/try-ons", json={**asked, "negative_prompt": ""}, headers=png
    )
    fields = {**how, "negative_prompt": ""}
    by_form = await drawing_http.post("/v1/try-ons", files={"person": PICTURE}, data=fields)
    edited = await drawing_http.post("/v1/images/edits", files={"image": PICTURE}, data=fields)
    assert none.content != empty.content
    assert by_form.content == empty.content
    assert base64.b64decode(edited.json()["data"][0]["b64_json"]) == empty.content


async def test_an_empty_prompt_is_a_prompt_in_a_form_as_in_json(
    drawing_http: httpx.AsyncClient,
) -> None:
    how = {"steps": 1, "seed": 3, "prompt": ""}
    png = {"accept": "image/png"}
    by_json = await drawing_http.post("/v1/try-ons", json={"person": B64, **how}, headers=png)
    by_form = await drawing_http.post("/v1/try-ons", files={"person": PICTURE}, data=how)
    assert by_json.status_code == 200
    assert by_form.content == by_json.content


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(PICTURE).decode(),
        f"data:image/png;base64,{B64}",
        base64.urlsafe_b64encode(PICTURE).decode(),
        B64.rstrip("="),
    ],
    ids=["in lines", "data URL", "for URLs", "without padding"],
)
async def test_base64_is_read_as_clients_write_it(drawing_http, text: str) -> None:
    asked = {"person": text, "steps": 1, "seed": 1}
    plain = {**asked, "person": B64}
    headers = {"accept": "image/png"}
    answers = [
        await drawing_http.post("/v1/try-ons", json=one, headers=headers) for one in (asked, plain)
    ]
    assert [one.status_code for one in answers] == [200, 200]
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize("text", ["https://example.org/p.png", "data:image/png,abc", "A", "*"])
async def test_what_is_no_base64_is_refused(http: httpx.AsyncClient, text: str) -> None:
    answer = await http.post("/v1/try-ons", json={"person": text})
    assert [one["field"] for one in answer.json()["violations"]] == ["person"]


COSTLY = {
    "unknown members": b"{" + b",".join(b'"a%d":0' % n for n in range(150_000)) + b"}",
    "numbers for garments": b'{"person":"","garments":[' + b"1," * 300_000 + b"1]}",
    "empty lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
    "a deep list": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 500_000,
    "a long number": b'{"person":"","seed":' + b"9" * 5_000_000 + b"}",
    "many unknown members": json.dumps({f"{'x' * 500}{n}": 0 for n in range(2000)}).encode(),
    "a lone surrogate as a name": b'{"person":"","\\ud800":1}',
    "a member twice": b'{"person":"","steps":1,"steps":2}',
}


@pytest.mark.parametrize("name", COSTLY)
async def test_json_that_would_cost_is_refused_with_a_small_answer(
    http: httpx.AsyncClient, name: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/try-ons", content=COSTLY[name], headers=headers)
    problem = answer.json()
    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.content) < 16 * 1024
    assert len(problem.get("violations", ())) <= 20


def test_json_is_read_no_deeper_than_the_limit() -> None:
    def deep(levels: int) -> bytes:
        return b"[" * levels + b"]" * levels

    assert read_json_text(deep(MAX_DEPTH + 1))
    with pytest.raises(RequestError, match="deeper than"):
        read_json_text(deep(MAX_DEPTH + 2))


def test_values_are_counted_before_json_is_parsed() -> None:
    assert len(read_json_text(b"[" + b"1," * 99 + b"1]", 100)) == 100
    with pytest.raises(RequestError, match="more than 100"):
        read_json_text(b"[" + b"1," * 100 + b"1", 100)  # no JSON: it was not parsed


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def latents(shape: list[Any], data: bytes) -> bytes:
    own = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
    return safetensors({"latents": own}, data)


ODD = {
    "nothing": b"",
    "a long header": safetensors(b"{" + b" " * 70_000 + b"}"),
    "a header of 2^63 bytes": safetensors(b"{}", length=2**63),
    "a header that is a list": safetensors(b"[]"),
    "a header that is cut off": safetensors(b'{"latents":'),
    "a dimension of 0": latents([0, 2**40, 8], b""),
    "a negative dimension": latents([-1, 8, 8], b""),
    "a dimension that is true": latents([True, 1, 1], b"\0" * 4),
    "a thousand dimensions": latents([1] * 1000, b"\0" * 4),
    "two dimensions": latents([8, 8], b"\0" * 256),
    "many tensors": safetensors(
        {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(17)}
    ),
    "another name": safetensors(
        {"x": {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
}


@pytest.mark.parametrize("name", ODD)
async def test_odd_safetensors_are_refused_as_the_callers(http: httpx.AsyncClient, name) -> None:
    answer = await http.post("/v1/stages/decoding", files={"latents": ODD[name]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["reason"] == "PAYLOAD_INVALID"


async def test_sampling_refuses_tensors_that_it_would_not_use(http: httpx.AsyncClient) -> None:
    own = {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [0, 4]}
    texts = safetensors({"embeddings": own, "pooled": {**own, "data_offsets": [4, 8]}}, b"\0" * 8)
    pictures = safetensors({"latents_1": own}, b"\0" * 4)
    files = {"embeddings": texts, "latents": pictures}
    answer = await http.post("/v1/stages/sampling", files=files)
    assert "pooled" in answer.json()["detail"]
    files = {"embeddings": pictures, "latents": safetensors({"latents_2": own}, b"\0" * 4)}
    answer = await http.post("/v1/stages/sampling", files=files)
    assert answer.json()["reason"] == "PAYLOAD_INVALID"


async def test_parameters_that_a_route_does_not_have_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/try-ons?steps=3", files={"person": PICTURE})
    assert [one["field"] for one in answer.json()["violations"]] == ["query.steps"]
    files = {"latents": latents([16, 8, 8], b"\0" * 4096)}
    answer = await http.post("/v1/stages/decoding", files=files, data={"profile": "comfy"})
    assert [one["field"] for one in answer.json()["violations"]] == ["profile"]


async def test_a_compressed_body_is_refused_by_name(http: httpx.AsyncClient) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    answer = await http.post("/v1/try-ons", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 400
    assert "Content-Encoding" in answer.json()["detail"]


def field_names(message: type[Message]) -> set[str]:
    """Give the fields of a protobuf message."""
    return {one.name for one in message.DESCRIPTOR.fields}


def test_try_ons_edits_and_previews_have_every_field_of_the_protos() -> None:
    wanted = field_names(TryOnOptions)
    assert wanted <= {*TryOnFields.model_fields}
    # By OpenAI's names: output_format, output_compression, partial_images.
    assert wanted - {"format", "quality", "previews"} <= {*ImageEdit.model_fields}
    assert field_names(PreviewPolicy) == {*PreviewsBody.model_fields}
    assert field_names(Numerics) - {"profile"} == {*NumericsBody.model_fields}


def test_the_sampling_route_has_every_field_of_the_sampler() -> None:
    # One file of tensors is the answer: it has no place for previews or resume points.
    elsewhere = {"payloads", "previews", "resume", "resume_every"}
    assert field_names(SampleStart) - elsewhere <= {*SampleForm.model_fields}


@pytest.mark.parametrize("name", ["previews", "resume", "resume_every"])
async def test_the_sampling_route_refuses_by_name_what_it_has_no_place_for(
    http: httpx.AsyncClient, name: str
) -> None:
    files = {"embeddings": b"", "latents": b""}
    answer = await http.post("/v1/stages/sampling", files=files, data={name: "1"})
    assert answer.status_code == 400
    assert name in [one["field"] for one in answer.json()["violations"]]


@pytest.mark.parametrize("how", ["json", "form"])
async def test_previews_are_as_many_as_the_body_asks_for(http: httpx.AsyncClient, how: str) -> None:
    wanted = {"steps": 4, "priority": "batch", "previews": {"every_steps": 2}}
    body: dict[str, Any] = {"json": {"person": B64, **wanted}}
    if how == "form":
        data = {**wanted, "previews": json.dumps(wanted["previews"])}
        body = {"files": {"person": PICTURE}, "data": data}
    answer = await http.post("/v1/try-ons", **body, headers={"accept": "text/event-stream"})
    shown = [told["step"] for name, told in events_of(answer.text) if name == "preview"]
    assert shown == [2, 4]
    refused = await http.post("/v1/try-ons", **body, headers={"accept": "application/json"})
    assert refused.status_code == 400
    assert [one["field"] for one in refused.json()["violations"]] == ["previews"]


async def test_edits_tell_seed_fits_and_unused_options_as_try_ons_do(
    http: httpx.AsyncClient,
) -> None:
    how = {"steps": 2, "seed": 7, "numerics": json.dumps({"shift": 2.0, "schedule": "simple"})}
    how |= {"true_cfg_scale": 1.0, "negative_prompt": "tucked in"}
    tried = await http.post("/v1/try-ons", files={"person": PICTURE}, data=how)
    assert tried.headers["x-vtryon-unused-options"]
    edit = {**how, "prompt": "wear it", "n": 2}
    edited = await http.post("/v1/images/edits", files={"image": PICTURE}, data=edit)
    assert edited.status_code == 200, edited.text
    digests = dict(one.split("=") for one in tried.headers["x-vtryon-model-digests"].split(", "))
    assert set(digests) == set(STAGES)
    assert all(len(digest) == 64 for digest in digests.values())
    for name in ("x-vtryon-seed", "x-vtryon-unused-options", "x-vtryon-model-digests"):
        assert edited.headers[name] == tried.headers[name]
    assert "sampling;dur=" in edited.headers["server-timing"]
    assert [one["seed"] for one in edited.json()["data"]] == [7, 8]
    for one in edited.json()["data"]:
        unused = ", ".join(option["field"] for option in one["unused_options"])
        assert unused == tried.headers["x-vtryon-unused-options"]
        assert one["fits"]
        assert one["model_digests"] == digests
    streamed = await http.post(
        "/v1/images/edits", files={"image": PICTURE}, data={**edit, "n": 1, "stream": "true"}
    )
    name, last = events_of(streamed.text)[-1]
    assert (name, last["seed"]) == ("image_edit.completed", 7)
    assert last["unused_options"] == edited.json()["data"][0]["unused_options"]


async def test_the_sampling_route_tells_its_unused_options(drawing_http: httpx.AsyncClient) -> None:
    post, pictures = drawing_http.post, [("pictures", PICTURE)]
    texts = await post("/v1/stages/text-encoder", files=pictures, data={"prompt": "wear it"})
    latents = await post("/v1/stages/latent-encoder", files=pictures)
    files = [("embeddings", texts.content), ("latents", latents.content)]
    numerics = json.dumps({"schedule": "simple"})
    data = {"sigmas": ["1.0", "0.5"], "seed": 7, "numerics": numerics, "priority": "batch"}
    sampled = await post("/v1/stages/sampling", files=files, data=data)
    assert sampled.status_code == 200, sampled.text
    drawn = await post("/v1/stages/decoding", files=[("latents", sampled.content)])
    answers = (latents, texts, sampled, drawn)
    for stage, answer in zip(STAGES, answers, strict=True):
        [said] = answer.headers["x-vtryon-model-digests"].split(", ")
        assert said.startswith(f"{stage}=")
        assert len(said) == len(f"{stage}=") + 64
    assert sampled.headers["x-vtryon-seed"] == "7"
    assert sampled.headers["x-vtryon-unused-options"] == "numerics.schedule"


WRONG_IN_JSON = {
    "steps": [True, "5", 5.5, [5]],
    "seed": ["5", False, 1.5],
    "true_cfg_scale": ["2", True],
    "timeout_seconds": [True, "60"],
    "width": ["64", True],
    "strength": ["0.5", True],
    "sigmas": [[True], ["0.5"], "0.5"],
    "prompt": [5, True, None, ["x"]],
    "format": [1, "gif"],
    "priority": [True],
    "numerics": [{"shift": True}, {"shift": "1"}, [], "no JSON"],
    "previews": [{"every_steps": True}, {"every_steps": "1"}, True],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_IN_JSON.items() for value in values]
)
async def test_a_value_of_another_json_type_is_refused_by_the_fields_name(
    http: httpx.AsyncClient, name: str, value: object
) -> None:
    answer = await http.post("/v1/try-ons", json={"person": B64, name: value})
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["detail"]


@pytest.mark.parametrize(("name", "value"), [("steps", "true"), ("true_cfg_scale", "yes")])
async def test_a_form_takes_numbers_as_text_and_no_other_text(http, name: str, value: str) -> None:
    answer = await http.post("/v1/try-ons", files={"person": PICTURE}, data={name: value})
    assert [one["field"] for one in answer.json()["violations"]] == [name]
    text = json.dumps({"shift": "1"})
    answer = await http.post("/v1/try-ons", files={"person": PICTURE}, data={"numerics": text})
    assert "shift" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"steps": %s}' % (b"9" * 5000), "digits"),
        (b'{"prompt": "\\ud800"}', "Unicode"),
        (b"[]", "no object"),
        (b'{"steps": NaN}', "steps"),
    ],
    ids=["digits", "surrogate", "array", "NaN"],
)
async def test_json_that_holds_no_request_says_what_is_wrong(http, text: bytes, words: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/try-ons", content=text, headers=headers)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
async def test_json_is_read_in_every_encoding_of_unicode(http, encoding: str) -> None:
    text = json.dumps({"person": B64, "prompt": "чёрная рубашка 👕", "steps": 1})
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/try-ons", content=text.encode(encoding), headers=headers)
    assert answer.status_code == 200, answer.text


async def test_accept_decides_whether_a_quality_has_a_meaning(
    drawing_http: httpx.AsyncClient,
) -> None:
    given = {"person": B64, "steps": 1, "quality": 50}
    answers = {
        accept: await drawing_http.post("/v1/try-ons", json=given, headers={"accept": accept})
        for accept in ("image/jpeg", "image/png", "*/*")
    }
    assert {accept: one.status_code for accept, one in answers.items()} == {
        "image/jpeg": 200,
        "image/png": 400,
        "*/*": 400,
    }
    assert answers["image/jpeg"].content[:3] == b"\xff\xd8\xff"
    assert "quality" in answers["*/*"].json()["detail"]


async def test_accept_chooses_the_format_of_every_picture(drawing_http, jobs_http) -> None:
    files = {"latents": latents([16, 8, 8], b"\0" * 4096)}
    webp = {"accept": "image/webp"}
    decoded = await drawing_http.post("/v1/stages/decoding", files=files, headers=webp)
    assert decoded.headers["content-type"] == "image/webp", decoded.text
    assert decoded.content[8:12] == b"WEBP"
    none = await drawing_http.post(
        "/v1/stages/decoding", files=files, headers={"accept": "text/html"}
    )
    assert none.status_code == 400

    headers = {"idempotency-key": "of-a-picture"}
    made = await jobs_http.post("/v1/try-ons", files={"person": PICTURE}, headers=headers)
    path = f"/v1/jobs/{made.headers['x-vtryon-job']}/picture"
    fetched = [await jobs_http.get(path, headers={"accept": one}) for one in ("image/webp", "*/*")]
    assert [one.headers["content-type"] for one in fetched] == ["image/webp", "image/png"]
    assert fetched[0].content[8:12] == b"WEBP"


@pytest.mark.parametrize("how", ["form", "json"])
async def test_labels_are_found_again_with_a_job(jobs_http: httpx.AsyncClient, how: str) -> None:
    labels = {"order": "4711", "shop": "Zürich"}
    if how == "json":
        made = await jobs_http.post("/v1/jobs", json={"person": B64, "labels": labels})
    else:
        data = {"labels": json.dumps(labels)}
        made = await jobs_http.post("/v1/jobs", files={"person": PICTURE}, data=data)
    assert made.status_code == 202, made.text
    found = await jobs_http.get(made.headers["location"])
    assert found.json()["labels"] == labels
    odd = await jobs_http.post("/v1/jobs", json={"person": B64, "labels": {"order": 4711}})
    assert odd.status_code == 400
    none = await jobs_http.post("/v1/try-ons", json={"person": B64, "labels": labels})
    assert none.status_code == 400  # nothing would keep them


async def test_without_a_jobs_service_it_is_said_what_to_set(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", json={"person": B64})
    assert answer.status_code == 503
    assert "VTRYON_REST_JOBS_TARGET" in answer.json()["detail"]
