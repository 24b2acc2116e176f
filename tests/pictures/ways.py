"""Every way in for a picture, and what the decoder made of it behind that way."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conformance.interfaces import Asked, ByKafka, Form, Grpc, Inline, Interface, Job, Json
from tests.support.commands import invoke
from tests.support.jobs import jobs_served
from tests.support.kafka import Kafka, bridge_settings
from tests.support.pictures import png

import vtryon
from vtryon.errors import VtryonError
from vtryon.wire.payloads import Buffer
from vtryon_services.backends.protocols import Latents
from vtryon_services.backends.scripted import ScriptedLatentEncoder
from vtryon_services.bridges.kafka.bridge import begin as begin_kafka
from vtryon_services.bridges.rest.server import begin as begin_rest
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.engine import pictures
from vtryon_services.engine.numerics import Resolved

Group = tuple[bytes, ...]


def digest_of(pixels: Image.Image) -> str:
    return hashlib.sha256(str(pixels.size).encode() + pixels.tobytes()).hexdigest()


class Decoded(dict[bytes, str]):
    """Digests of pixels, by the bytes that were decoded, the newest last."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Let the scripted latent encoder decode as the engine does, and note what came out."""
        encode = ScriptedLatentEncoder.encode

        async def decoding(
            backend: ScriptedLatentEncoder, given: Sequence[Buffer], numerics: Resolved
        ) -> Sequence[Latents]:
            for data in given:
                self[bytes(data)] = digest_of(await asyncio.to_thread(pictures.decode, data))
            return await encode(backend, given, numerics)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ScriptedLatentEncoder, "check", staticmethod(pictures.check))
            patch.setattr(ScriptedLatentEncoder, "encode", decoding)
            yield


class Way:
    """A way in: a request for each group of files; gives its reason, empty where it was taken."""

    keeps_bytes = True

    def __init__(self, interface: Interface) -> None:
        self._interface = interface

    async def send(self, groups: Sequence[Group]) -> list[str]:
        at_once = asyncio.Semaphore(8)

        async def draw(group: Group) -> str:
            async with at_once:
                return (await self._interface.draw(Asked(group[0], group[1:], {"steps": 1}))).reason

        return await asyncio.gather(*map(draw, groups))


class BySdk(Way):
    """The SDK, with a source made of the file."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder

    @contextmanager
    def source(self, data: bytes) -> Iterator[Any]:
        yield self._write(data)

    def _write(self, data: bytes) -> Path:
        path = self._folder / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return path

    async def send(self, groups: Sequence[Group]) -> list[str]:
        async with vtryon.Client(self._target) as client:
            return [await self._draw(client, group) for group in groups]

    async def _draw(self, client: vtryon.Client, group: Group) -> str:
        with ExitStack() as stack:
            sources = [stack.enter_context(self.source(data)) for data in group]
            try:
                await client.try_on(sources[0], sources[1:], steps=1, previews=False)
            except VtryonError as error:
                return str(error.reason)
        return ""


class OpenFile(BySdk):
    @contextmanager
    def source(self, data: bytes) -> Iterator[Any]:
        with self._write(data).open("rb") as file:
            yield file


class InMemory(BySdk):
    @contextmanager
    def source(self, data: bytes) -> Iterator[Any]:
        file = io.BytesIO()
        file.write(data)  # and not rewound, as people forget to
        yield file


class PilImage(BySdk):
    keeps_bytes = False

    @contextmanager
    def source(self, data: bytes) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about broken EXIF
            image = Image.open(io.BytesIO(data))
        with image:
            yield image


class Array(BySdk):
    keeps_bytes = False

    @contextmanager
    def source(self, data: bytes) -> Iterator[Any]:
        yield np.asarray(pictures.decode(data))


class Batch(Way):
    """The shell's batch, all pictures in one."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder

    async def send(self, groups: Sequence[Group]) -> list[str]:
        rows = []
        for number, group in enumerate(groups):
            person, *garments = (path.name for path in self._write(group))
            row = {"name": f"one-{number}", "person": person, "garments": garments, "steps": 1}
            rows.append(json.dumps(row))
        work = self._folder / "work.jsonl"
        work.write_text("\n".join(rows))
        report = await self.run("batch", work, self._folder / "out", "--concurrency", 2)
        return [line["reason"] for line in report["results"]]

    def _write(self, group: Group) -> list[Path]:
        self._folder.mkdir(exist_ok=True)
        paths = [self._folder / f"{hashlib.sha256(data).hexdigest()}.png" for data in group]
        for path, data in zip(paths, group, strict=True):
            path.write_bytes(data)
        return paths

    async def run(self, *words: object) -> dict[str, Any]:
        command = (*words, "--endpoint", self._target, "--json")
        ran = await asyncio.to_thread(invoke, *command)
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])  # behind the mesh's log
        return found


class Command(Batch):
    """`vtryon try-on`, once for each picture."""

    async def send(self, groups: Sequence[Group]) -> list[str]:
        reasons = []
        for group in groups:
            paths = self._write(group if len(group) > 1 else (*group, png()))
            said = await self.run("try-on", *paths, "-o", self._folder / "out.png", "--steps", 1)
            reasons.append(said.get("error", {}).get("reason", ""))
        return reasons


@asynccontextmanager
async def ways_in(kafka: Kafka, folder: Path) -> AsyncIterator[dict[str, Way]]:
    """The scripted mesh with every front interface."""
    async with jobs_served(
        folder,
        scripted_seconds=0.0,
        cache_bytes=0,
        poll_seconds=0.05,
        max_attempts=1,
        outbox=True,
        drain_grace_seconds=1.0,
    ) as target:
        rest = RestSettings.load(listen="127.0.0.1:0", pipeline_target=target)
        bridge = bridge_settings(kafka, target, folder)
        async with begin_rest(rest) as began, begin_kafka(bridge):
            url = f"http://{began.address}"
            yield {
                "bytes": Way(Grpc(target)),
                "path": BySdk(target, folder),
                "open file": OpenFile(target, folder),
                "file in memory": InMemory(target, folder),
                "PIL image": PilImage(target, folder),
                "array": Array(target, folder),
                "inline": Way(Inline(target)),
                "job": Way(Job(target)),
                "form": Way(Form(url)),
                "json": Way(Json(url)),
                "kafka": Way(ByKafka(kafka)),
                "batch": Batch(target, folder / "batch"),
                "command": Command(target, folder / "command"),
            }
