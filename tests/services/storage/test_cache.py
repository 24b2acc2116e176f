"""Results kept by content: bounded in bytes, and made once however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from vtryon_services.storage.cache import ResultCache


class Work:
    def __init__(self, size: int = 10) -> None:
        self.made: list[list[int]] = []
        self.gate = asyncio.Event()
        self.size = size

    async def __call__(self, places: Sequence[int]) -> list[bytes]:
        self.made.append(list(places))
        await self.gate.wait()
        return [bytes(self.size + place) for place in places]


async def test_equal_work_under_way_is_done_once() -> None:
    cache, work = ResultCache[bytes]("test", 1000, len), Work()
    asked = [asyncio.ensure_future(cache.get(["a"], work)) for _ in range(5)]
    await asyncio.sleep(0)
    assert "a" in cache
    work.gate.set()
    assert await asyncio.gather(*asked) == [[bytes(10)]] * 5
    assert work.made == [[0]]
    assert await cache.get(["a"], work) == [bytes(10)]
    assert work.made == [[0]]


async def test_what_is_missing_is_made_together_and_each_result_once() -> None:
    cache, work = ResultCache[bytes]("test", 1000, len), Work()
    first = asyncio.ensure_future(cache.get(["a", "b", "a"], work))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(cache.get(["c", "a", "d"], work))
    await asyncio.sleep(0)
    work.gate.set()
    assert await first == [bytes(10), bytes(11), bytes(10)]
    assert await second == [bytes(10), bytes(10), bytes(12)]
    assert work.made == [[0, 1], [0, 2]]


async def test_who_leaves_does_not_take_the_work_from_the_others() -> None:
    cache, work = ResultCache[bytes]("test", 1000, len), Work()
    first = asyncio.ensure_future(cache.get(["a", "b"], work))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(cache.get(["a"], work))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    work.gate.set()
    assert await second == [bytes(10)]


async def test_work_that_nobody_waits_for_stops_and_is_begun_anew() -> None:
    cache, work = ResultCache[bytes]("test", 1000, len), Work()
    only = asyncio.ensure_future(cache.get(["a", "b"], work))
    await asyncio.sleep(0)
    only.cancel()
    await asyncio.gather(only, return_exceptions=True)
    assert "a" not in cache
    work.gate.set()
    assert await cache.get(["a"], work) == [bytes(10)]
    assert work.made == [[0, 1], [0]]


async def test_the_least_recently_used_results_go_and_large_ones_are_not_kept() -> None:
    cache = ResultCache[bytes]("test", 25, len)

    def make(size: int) -> Work:
        work = Work(size)
        work.gate.set()
        return work

    await cache.get(["a"], make(10))
    await cache.get(["b"], make(10))
    await cache.get(["a"], make(10))
    await cache.get(["c"], make(10))
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    await cache.get(["d"], make(26))
    assert "d" not in cache
    assert cache.bytes_held == 20


async def test_a_failure_reaches_whom_it_concerns_and_is_not_kept() -> None:
    cache = ResultCache[bytes]("test", 100, len)
    gate = asyncio.Event()

    async def fail(places: Sequence[int]) -> list[bytes]:
        await gate.wait()
        if 1 in places:
            raise RuntimeError("broken")
        return [bytes(10) for _ in places]

    asked = [asyncio.ensure_future(cache.get(["a", "b"], fail)) for _ in range(2)]
    await asyncio.sleep(0)
    good = asyncio.ensure_future(cache.get(["a"], fail))
    await asyncio.sleep(0)
    gate.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in found] == ["broken", "broken"]
    assert await good == [bytes(10)]
    assert ("a" in cache, "b" in cache) == (True, False)


async def test_no_bytes_no_cache() -> None:
    cache, work = ResultCache[bytes]("test", 0, len), Work()
    work.gate.set()
    await asyncio.gather(cache.get(["a"], work), cache.get(["a"], work))
    assert work.made == [[0], [0]]


@pytest.mark.parametrize("per_tenant", [False, True])
async def test_keys_tell_content_apart_and_tenants_where_asked(per_tenant) -> None:
    cache = ResultCache[bytes]("test", 1000, len, per_tenant=per_tenant)
    key = await cache.key("a", [b"abc"], "prompt", None)
    assert key == await cache.key("a", [bytearray(b"abc")], "prompt", None)
    assert key != await cache.key("a", [memoryview(b"xyz")], "prompt", None)
    assert key != await cache.key("a", [b"abc"], None, "prompt")
    assert (key != await cache.key("b", [b"abc"], "prompt", None)) == per_tenant


@pytest.mark.parametrize("per_tenant", [False, True])
async def test_an_encoder_says_what_it_had_to_who_asked_before(example, per_tenant) -> None:
    import vtryon
    from vtryon.embedded import embedded_mesh
    from vtryon.events import Chunk
    from vtryon.stages import image_payloads
    from vtryon.types import EncodeLatentsStart, PayloadKind

    async with (
        embedded_mesh(cache_per_tenant=per_tenant) as target,
        vtryon.Client(target) as client,
    ):
        [outgoing] = await image_payloads([(PayloadKind.IMAGE, example.person, "picture")])

        async def ask(tenant: str) -> tuple[bool | None, bytes]:
            stream = client.latent_encoder.open(EncodeLatentsStart(), [outgoing], tenant=tenant)
            cached, data = None, b""
            async with stream:
                async for event in stream:
                    if isinstance(event, vtryon.Accepted):
                        cached = event.cached
                    if isinstance(event, Chunk):
                        data += event.data
            return cached, data

        first, again, other = await ask("a"), await ask("a"), await ask("b")
        assert (first[0], again[0], other[0]) == (False, True, False)
        assert first[1] == again[1] == other[1]
