"""One table of pictures by every way in: the same pixels, or the same refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from tests.pictures.refused import REFUSED
from tests.pictures.table import TAKEN
from tests.pictures.ways import Decoded, Way, digest_of, ways_in
from tests.support.kafka import Kafka

from vtryon_services.engine import pictures

WAYS = [
    *("bytes", "path", "open file", "file in memory", "PIL image", "array", "inline"),
    *("job", "form", "json", "kafka", "batch", "command"),
]


@pytest.fixture(scope="module")
async def decoded() -> AsyncIterator[Decoded]:
    """What the mesh decodes."""
    decoded = Decoded()
    async with decoded.watching():
        yield decoded


@pytest.fixture(scope="module")
async def ways(
    decoded: Decoded, kafka_servers: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Way]]:
    """Every way into one mesh."""
    kafka = replace(kafka_servers, prefix="pictures")
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(ways_in(kafka, tmp_path_factory.mktemp("pictures")))


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """The digest of each picture's pixels."""
    return {one.name: digest_of(pictures.decode(one.data)) for one in TAKEN}


@pytest.mark.parametrize("name", WAYS)
async def test_every_picture_has_the_same_pixels(ways, decoded, expected, name: str) -> None:
    way = ways[name]
    taken = [one for one in TAKEN if one.image or name != "PIL image"]
    groups = [taken[at : at + 4] for at in range(0, len(taken), 4)]
    decoded.clear()
    if way.keeps_bytes:
        reasons = await way.send([tuple(one.data for one in group) for group in groups])
        found = {one.name: decoded.get(one.data) for one in taken}
    else:
        reasons, found = [], {}
        for one in taken:
            decoded.clear()
            reasons += await way.send([(one.data,)])
            found[one.name] = next(iter(decoded.values()), None)
    assert set(reasons) == {""}
    assert found == {one.name: expected[one.name] for one in taken}


@pytest.mark.parametrize("name", [way for way in WAYS if way not in {"PIL image", "array"}])
async def test_every_picture_is_refused_by_the_same_reason(ways, name: str) -> None:
    reasons = await ways[name].send([(one.data,) for one in REFUSED])
    found = {one.name: reason for one, reason in zip(REFUSED, reasons, strict=True)}
    assert found == {one.name: str(one.reason) for one in REFUSED}
