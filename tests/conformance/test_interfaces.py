"""One list of requests through every interface and topology: the same picture, the same reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from tests.conformance.interfaces import (
    Asked,
    ByKafka,
    Events,
    Files,
    Form,
    Grpc,
    Inline,
    Interface,
    Job,
    Json,
    RestJob,
    draw_all,
    drawings,
    same,
)
from tests.support.bad_input import OPTIONS, PICTURE, PICTURES
from tests.support.jobs import jobs_served
from tests.support.kafka import Kafka, bridge_settings
from tests.support.loras import make_lora

from vtryon_services.bridges.kafka.bridge import begin as begin_kafka
from vtryon_services.bridges.rest.server import begin
from vtryon_services.bridges.rest.settings import RestSettings

INTERFACES = ["inline", "job", "form", "json", "events", "rest job", "files", "hybrid", "kafka"]
# Requests that an interface has no words for: manifests have one format for all their results and
# keep no previews, and Kafka's records have no place for previews.
NO_PLACE = {
    "files": {"quality zero", "many previews"},
    "hybrid": {"many previews"},
    "kafka": {"many previews"},
}
REFUSED = {name: options for name, (options, _) in OPTIONS.items()}


@pytest.fixture(scope="module")
async def interfaces(
    kafka_servers: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Interface]]:
    """The mesh with jobs, and the bridges in front."""
    folder = tmp_path_factory.mktemp("conformance")
    make_lora(folder / "silk.safetensors")
    async with jobs_served(
        folder,
        backend="torch",
        loras={"silk": folder / "silk.safetensors"},
        retry_seconds=0.1,
        max_attempts=1,
        outbox=True,
        drain_grace_seconds=1.0,
    ) as target:
        rest = RestSettings.load(listen="127.0.0.1:0", pipeline_target=target)
        hybrid = replace(kafka_servers, prefix="conformance-hybrid")
        chain = replace(kafka_servers, prefix="conformance-kafka")
        async with (
            begin(rest) as began,
            begin_kafka(bridge_settings(hybrid, target, folder)),
            begin_kafka(bridge_settings(chain, target, folder, topology="kafka", serves="all")),
        ):
            url = f"http://{began.address}"
            yield {
                "grpc": Grpc(target),
                "inline": Inline(target),
                "job": Job(target),
                "form": Form(url),
                "json": Json(url),
                "events": Events(url),
                "rest job": RestJob(url),
                "files": Files(target, folder / "files"),
                "hybrid": ByKafka(hybrid),
                "kafka": ByKafka(chain),
            }


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    """What is to be drawn, by name."""
    return drawings()


@pytest.fixture(scope="module")
async def expected(
    interfaces: dict[str, Interface], asked: dict[str, Asked]
) -> dict[str, np.ndarray]:
    """What the gRPC interface draws."""
    drawn = await asyncio.gather(*(interfaces["grpc"].draw(one) for one in asked.values()))
    return {name: one.pixels.astype(int) for name, one in zip(asked, drawn, strict=True)}


@pytest.mark.parametrize("interface", INTERFACES)
async def test_the_same_picture_through_every_interface(
    interfaces, asked, expected, interface: str
) -> None:
    taken = {name: one for name, one in asked.items() if interfaces[interface].takes(one)}
    found = await draw_all(interfaces[interface], [*taken.values()])
    for name, went in zip(taken, found, strict=True):
        assert same(went.pixels, expected[name]), (name, went.reason)
    assert len(taken) >= 5


@pytest.fixture(scope="module")
async def reasons(interfaces: dict[str, Interface]) -> dict[str, str]:
    """What the gRPC interface says to bad requests."""
    said = await asyncio.gather(
        *(interfaces["grpc"].draw(Asked(PICTURE, (PICTURE,), one)) for one in REFUSED.values()),
        *(
            interfaces["grpc"].draw(Asked(data, (PICTURE,), {"steps": 1}))
            for data, _ in PICTURES.values()
        ),
    )
    return {name: one.reason for name, one in zip([*REFUSED, *PICTURES], said, strict=True)}


@pytest.mark.parametrize("interface", INTERFACES)
async def test_the_same_reason_through_every_interface(interfaces, reasons, interface: str) -> None:
    bad = {name: Asked(PICTURE, (PICTURE,), options) for name, options in REFUSED.items()}
    bad |= {name: Asked(data, (PICTURE,), {"steps": 1}) for name, (data, _) in PICTURES.items()}
    taken = {name: one for name, one in bad.items() if interfaces[interface].takes(one)}
    assert {*bad} - {*taken} <= NO_PLACE.get(interface, set())
    assert all(reasons[name] for name in taken)
    found = await draw_all(interfaces[interface], [*taken.values()])
    said = {name: went.reason for name, went in zip(taken, found, strict=True)}
    assert said == {name: reasons[name] for name in taken}
    [good] = await asyncio.gather(
        interfaces[interface].draw(Asked(PICTURE, (PICTURE,), {"steps": 1}))
    )
    assert good.pixels is not None
