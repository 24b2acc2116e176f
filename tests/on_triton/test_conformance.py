"""The list of requests that every interface draws, as one request each of Triton's ensemble."""

from __future__ import annotations

import asyncio

from tests.conformance.interfaces import Grpc, drawings, same

from vtryon.embedded import embedded_mesh


async def test_the_same_picture_from_the_ensemble(triton, mesh: str) -> None:
    """But for LoRAs, which models in a Triton server do not apply: they are refused."""
    asked = drawings()
    with_lora = asked.pop("a LoRA")
    async with embedded_mesh(triton_url=triton.grpc, topology="ensemble") as target:
        found = await asyncio.gather(*(Grpc(target).draw(one) for one in asked.values()))
        refused = await Grpc(target).draw(with_lora)
    assert (refused.pixels, refused.reason) == (None, "FIELD_INVALID")
    expected = await asyncio.gather(*(Grpc(mesh).draw(one) for one in asked.values()))
    for name, went, wanted in zip(asked, found, expected, strict=True):
        assert same(went.pixels, wanted.pixels.astype(int)), (name, went.reason)
