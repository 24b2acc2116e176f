"""A stage beside the pipeline is called without a wire, and nobody can tell."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.pictures import png

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon_services.backends.scripted import ScriptedDecoding, ScriptedLatentEncoder


async def test_its_failure_is_one_of_the_stage_and_the_next_request_works(monkeypatch) -> None:
    async with (
        embedded_mesh(backend="scripted", log_level="error") as target,
        vtryon.Client(target) as client,
    ):
        for broken in (RuntimeError("a secret of ours"), asyncio.CancelledError()):
            with monkeypatch.context() as patch:

                async def decode(*_: object, broken: BaseException = broken) -> None:
                    raise broken

                patch.setattr(ScriptedDecoding, "decode", decode)
                async with asyncio.timeout(5):
                    with pytest.raises(vtryon.VtryonError) as caught:
                        await client.try_on(png(), png(), steps=1)
            assert "secret" not in str(caught.value)
            assert caught.value.stage == "decoding"
        await client.try_on(png(), png(), steps=1)


async def test_its_refusals_come_through_with_their_facts(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise vtryon.RequestError(
            "no such picture", reason=vtryon.Reason.PICTURE_UNREADABLE, metadata={"limit": "7"}
        )

    monkeypatch.setattr(ScriptedLatentEncoder, "check", refuse)
    async with (
        embedded_mesh(backend="scripted") as target,
        vtryon.Client(target) as client,
    ):
        with pytest.raises(vtryon.RequestError) as caught:
            await client.try_on(png(), png(), steps=1)
    assert caught.value.reason is vtryon.Reason.PICTURE_UNREADABLE
    assert (caught.value.stage, caught.value.metadata["limit"]) == ("latent-encoder", "7")


async def test_its_deadline_is_the_requests(monkeypatch) -> None:
    async with (
        embedded_mesh(backend="scripted", scripted_seconds=0.2) as target,
        vtryon.Client(target) as client,
    ):
        with pytest.raises(vtryon.DeadlineError) as caught:
            await client.try_on(png(), png(), steps=100, timeout_seconds=1.0)
    assert 0 < caught.value.completed_steps < 5
