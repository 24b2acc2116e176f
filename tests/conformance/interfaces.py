"""Every interface of the mesh, as something that draws one request and says how that went."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import httpx
import numpy as np
from tests.support.kafka import Kafka, inline
from tests.support.pictures import decoded
from tests.support.processes import VTRYON
from tests.support.rest import events_of, form_field, plainly

import vtryon
from vtryon.errors import VtryonError
from vtryon.files.jsonable import plain
from vtryon.jobs import JobState
from vtryon.options import make_options
from vtryon.pictures import read_picture
from vtryon.types import TryOnInline
from vtryon.v1 import stream_pb2
from vtryon.wire.call_status import CallStatus
from vtryon_services.mannequin.triples import held_out


@dataclass(frozen=True)
class Asked:
    """A request as every interface can make it."""

    person: bytes
    garments: tuple[bytes, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Went:
    """A picture's pixels, or the reason why there is none."""

    pixels: np.ndarray | None = None
    reason: str = ""


DRAWN = {
    "plain": {"steps": 4, "seed": 1},
    "guided": {"steps": 3, "seed": 2, "true_cfg_scale": 3.0, "negative_prompt": "tucked in"},
    "guided by an empty prompt": {
        "steps": 3,
        "seed": 2,
        "true_cfg_scale": 3.0,
        "negative_prompt": "",
    },
    "smaller": {"steps": 4, "seed": 3, "width": 64, "height": 96},
    "comfy": {"steps": 5, "seed": 4, "profile": vtryon.Profile.COMFY},
    "from the person": {"steps": 4, "seed": 5, "strength": 0.6},
    "own levels": {"seed": 6, "sigmas": (1.0, 0.7, 0.2)},
    "a LoRA": {"steps": 4, "seed": 7, "loras": (vtryon.Lora("silk", 0.6),)},
}


def drawings() -> dict[str, Asked]:
    """What every interface draws, by name."""
    example = held_out(0)
    person, garment = read_picture(example.person), read_picture(example.garment)
    return {
        name: Asked(person, (garment,), {"prompt": example.prompt, **options})
        for name, options in DRAWN.items()
    }


def same(found: np.ndarray | None, expected: np.ndarray) -> bool:
    return found is not None and np.abs(found.astype(int) - expected).max() <= 1


class Interface(Protocol):
    """A way in."""

    def takes(self, asked: Asked) -> bool:
        """Whether the interface has words for all of it."""
        ...

    async def draw(self, asked: Asked) -> Went:
        """Make the request, and wait for its end."""
        ...


async def draw_all(interface: Interface, asked: Sequence[Asked]) -> list[Went]:
    """Make many requests at once, and wait for their ends."""
    if isinstance(interface, Files):  # one process for all of them
        return await interface.draw_all(asked)
    return await asyncio.gather(*(interface.draw(one) for one in asked))


class Grpc:
    """The SDK's try-on."""

    def __init__(self, target: str) -> None:
        self.target = target

    def takes(self, asked: Asked) -> bool:
        return True

    async def draw(self, asked: Asked) -> Went:
        async with vtryon.Client(self.target) as client:
            try:
                result = await client.try_on(asked.person, list(asked.garments), **asked.options)
            except VtryonError as error:
                return Went(reason=str(error.reason))
        return Went(decoded(result.picture.data))


class Inline(Grpc):
    """The unary request of browsers and of grpcurl."""

    async def draw(self, asked: Asked) -> Went:
        options = make_options(**{"previews": False, **asked.options})
        request = TryOnInline(asked.person, asked.garments, options).to_proto()
        async with vtryon.Client(self.target) as client:
            call = client.channel.grpc.unary_stream("/vtryon.v1.PipelineService/TryOnInline")(
                request.SerializeToString()
            )
            outcome, data = CallStatus(), bytearray()
            outcome.watch(call)
            try:
                async for raw in call:
                    data += stream_pb2.Event.FromString(raw).chunk.data
            except Exception as error:
                return Went(reason=str((await outcome.error(error)).reason))
        return Went(decoded(bytes(data)))


class Job(Grpc):
    """A job, by gRPC."""

    async def draw(self, asked: Asked) -> Went:
        async with vtryon.Client(self.target) as client:
            try:
                made = await client.jobs.create(
                    asked.person, list(asked.garments), **{"previews": False, **asked.options}
                )
                ended = await client.jobs.wait(made.id)
                if ended.state is not JobState.SUCCEEDED:
                    return Went(reason=str(ended.error.reason))
                picture = await client.jobs.picture(made.id)
            except VtryonError as error:
                return Went(reason=str(error.reason))
        return Went(decoded(picture.data))


class Form:
    """REST: a form, answered with the picture."""

    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, url: str) -> None:
        self.url = url

    def takes(self, asked: Asked) -> bool:
        return True

    async def draw(self, asked: Asked) -> Went:
        async with httpx.AsyncClient(base_url=self.url, timeout=60, verify=False) as http:
            return self.read(await self.post(http, asked))

    async def post(self, http: httpx.AsyncClient, asked: Asked) -> httpx.Response:
        files = [("person", asked.person), *(("garments", one) for one in asked.garments)]
        data = {name: form_field(value) for name, value in asked.options.items()}
        return await http.post("/v1/try-ons", files=files, data=data, headers=self.headers)

    def read(self, answer: httpx.Response) -> Went:
        if answer.status_code != 200:
            return Went(reason=answer.json()["reason"])
        return Went(decoded(answer.content))


class Json(Form):
    """REST: JSON in, JSON out."""

    async def post(self, http: httpx.AsyncClient, asked: Asked) -> httpx.Response:
        body = {
            "person": base64.b64encode(asked.person).decode(),
            "garments": [base64.b64encode(one).decode() for one in asked.garments],
            **{name: plainly(value) for name, value in asked.options.items()},
        }
        headers = {"content-type": "application/json", "accept": "application/json"}
        return await http.post("/v1/try-ons", content=json.dumps(body), headers=headers)

    def read(self, answer: httpx.Response) -> Went:
        if answer.status_code != 200:
            return Went(reason=answer.json()["reason"])
        return Went(decoded(base64.b64decode(answer.json()["picture"]["data"])))


class Events(Form):
    """REST: server-sent events."""

    headers: ClassVar[dict[str, str]] = {"accept": "text/event-stream"}

    def read(self, answer: httpx.Response) -> Went:
        if answer.status_code != 200:
            return Went(reason=answer.json()["reason"])
        name, told = events_of(answer.text)[-1]
        if name == "error":
            return Went(reason=told["reason"])
        return Went(decoded(base64.b64decode(told["picture"]["data"])))


class RestJob(Form):
    """REST: an idempotent try-on, which is a job that is waited for."""

    async def post(self, http: httpx.AsyncClient, asked: Asked) -> httpx.Response:
        http.headers["idempotency-key"] = f"conformance-{next(_numbers)}"
        return await super().post(http, asked)


class Files:
    """The shell's batch, from files to files; a manifest has a row for each request.

    A manifest that has an invalid line is refused whole, by the line: the others are tried again.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder

    def takes(self, asked: Asked) -> bool:
        """Whether rows have columns for all of it: one format is for all, previews are not kept."""
        return not {"previews", "format"} & {*asked.options}

    async def draw(self, asked: Asked) -> Went:
        [went] = await self.draw_all([asked])
        return went

    async def draw_all(self, asked: Sequence[Asked]) -> list[Went]:
        folder = self._folder / str(next(_numbers))
        folder.mkdir(parents=True)
        rows = [self._row(folder, f"row-{number}", one) for number, one in enumerate(asked)]
        (folder / "work.jsonl").write_text("\n".join(map(json.dumps, rows)))
        command = [VTRYON, "batch", folder / "work.jsonl", folder / "out", "--json"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--endpoint", self._target],
            capture_output=True,
            text=True,
            timeout=120,
        )
        report = json.loads(done.stdout)
        if "error" not in report:
            return [self._read(folder, line) for line in report["results"]]
        [line] = re.findall(r"^line (\d+): ", report["error"]["message"])
        others = [one for number, one in enumerate(asked, 1) if number != int(line)]
        went = await self.draw_all(others) if others else []
        return [
            *went[: int(line) - 1],
            Went(reason=report["error"]["reason"]),
            *went[int(line) - 1 :],
        ]

    def _row(self, folder: Path, name: str, asked: Asked) -> dict[str, object]:
        names = []
        for number, data in enumerate((asked.person, *asked.garments)):
            names.append(f"{name}-{number}")
            (folder / names[-1]).write_bytes(data)
        options = {key: plainly(value) for key, value in asked.options.items()}
        numerics = options.pop("numerics", {})
        assert isinstance(numerics, dict)
        row = {"name": name, "person": names[0], "garments": names[1:]}
        return {**row, **options, **numerics}

    def _read(self, folder: Path, line: dict[str, str]) -> Went:
        if line["reason"]:
            return Went(reason=line["reason"])
        return Went(decoded((folder / "out" / line["out"]).read_bytes()))


class ByKafka:
    """A record, answered by a record: plain aiokafka and fastavro."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def takes(self, asked: Asked) -> bool:
        options = asked.options
        seed = options.get("seed") or 0
        return "previews" not in options and seed < 2**63  # the schema has no place for more

    async def draw(self, asked: Asked) -> Went:
        name = f"conformance-{next(_numbers)}"
        request = {
            "request_id": name,
            "person": inline(asked.person),
            "garments": [inline(one) for one in asked.garments],
            "options": plain(make_options(**asked.options)),
        }
        await self._kafka.send("jobs.requests", "job_request", request)
        [answer] = await self._kafka.answers("jobs.responses", name)
        said = self._kafka.read(answer.value)
        if said["error"]:
            return Went(reason=said["error"]["reason"])
        return Went(decoded(said["picture"]["content"]["inline"]))


_numbers = iter(range(10**9))
