import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from tests.support.pictures import noise_png, png
from tests.support.processes import free_port

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.events import Chunk, Output
from vtryon.stages import image_payloads
from vtryon.testing import scripted_mesh
from vtryon.types import EncodedImage, Payload, PayloadKind, Stage, TryOnOptions, TryOnStart
from vtryon.v1 import pipeline_pb2, pipeline_pb2_grpc, stream_pb2
from vtryon.wire.payloads import Outgoing
from vtryon.wire.stream import TRY_ON, StreamCall
from vtryon_services.pipeline.relay import Fanout

PICTURE = png()


async def test_the_critical_hops_sum_to_the_wall_time(client: vtryon.Client, example) -> None:
    result = await client.try_on(example.person, example.garment, steps=2)
    ledger = result.ledger
    critical = [hop for hop in ledger.hops if hop.critical]
    assert sum(hop.total_seconds for hop in critical) == pytest.approx(ledger.wall_seconds)
    assert [hop.stage for hop in critical[-3:]] == [Stage.SAMPLING, Stage.DECODING, Stage.PIPELINE]
    assert len(ledger.hops) == 5
    for hop in ledger.hops:
        assert min(hop.queue_seconds, hop.transfer_seconds, hop.compute_seconds) >= 0
        assert hop.stage is Stage.PIPELINE or hop.compute_seconds > 0


async def test_equal_seeds_give_equal_pictures_and_others_others(client, example) -> None:
    one, same, other = [
        await client.try_on(example.person, example.garment, example.prompt, steps=2, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert one.picture.data == same.picture.data != other.picture.data


async def test_a_seed_that_the_server_drew_is_told_and_can_be_used(client, example) -> None:
    first = await client.try_on(example.person, example.garment, steps=1)
    again = await client.try_on(example.person, example.garment, steps=1, seed=first.seed)
    assert first.picture.data == again.picture.data


async def test_what_was_chosen_is_told(client, example) -> None:
    result = await client.try_on(example.person, example.garment)
    sampling = result.stages[Stage.SAMPLING]
    assert (sampling.steps, sampling.true_cfg_scale) == (4, 1.0)
    assert (sampling.width, sampling.height) == result.picture.size == (96, 128)
    assert len(sampling.sigmas) == 5
    digests = {accepted.model_digest for accepted in result.stages.values()}
    assert all(len(digest) == 64 for digest in digests)


async def test_a_picture_of_another_aspect_is_fitted_and_told(client) -> None:
    result = await client.try_on(png(300, 200), png(96, 128), steps=1)
    person, garment = result.fits
    assert (person.from_width, person.to_width, person.method) == (300, 96, "pad")
    assert person.changed
    assert not garment.changed


@pytest.mark.parametrize("profile", list(vtryon.Profile))
async def test_every_profile_draws(client, example, profile: vtryon.Profile) -> None:
    result = await client.try_on(
        example.person,
        example.garment,
        profile=profile,
        negative_prompt="",
        true_cfg_scale=2.5,
        steps=4,
    )
    assert result.accepted.numerics.profile is profile
    assert len(result.stages[Stage.SAMPLING].sigmas) == 5


@pytest.mark.parametrize("format_", list(vtryon.ImageFormat))
async def test_every_format_comes_out(client, example, format_: vtryon.ImageFormat) -> None:
    result = await client.try_on(example.person, example.garment, steps=1, format=format_)
    assert result.picture.format is format_
    assert result.picture.to_pil().format == format_.name


async def test_strength_starts_from_the_person(client, example) -> None:
    import numpy as np

    person = np.asarray(example.person).astype(float)

    async def distance(strength: float) -> float:
        result = await client.try_on(
            example.person, None, "the same", steps=10, strength=strength, seed=1
        )
        return float(np.abs(result.picture.to_numpy() - person).mean())

    assert await distance(0.1) < await distance(1.0)


async def test_given_sigmas_are_used_as_they_are(client, example) -> None:
    result = await client.try_on(example.person, example.garment, sigmas=(1.0, 0.5))
    assert result.stages[Stage.SAMPLING].sigmas == (1.0, 0.5, 0.0)


async def test_noise_levels_that_begin_below_one_start_from_the_person(client, example) -> None:
    numerics = vtryon.Numerics(vtryon.Profile.COMFY)
    given = {"numerics": numerics, "seed": 1, "true_cfg_scale": 1.0}
    shortened = await client.try_on(example.person, example.garment, steps=8, strength=0.5, **given)
    levels = shortened.stages[Stage.SAMPLING].sigmas[:-1]
    assert levels[0] < 1
    assert len(levels) == 4
    told = await client.try_on(example.person, example.garment, sigmas=levels, **given)
    assert told.picture.data == shortened.picture.data


async def test_a_large_picture_streams_through(client) -> None:
    large = noise_png(2000, 2100)
    assert len(large) > 12 * 1024 * 1024
    result = await client.try_on(large, png(), steps=1)
    assert result.fits[0].from_width == 2000


async def test_many_at_once_are_told_their_place_and_all_come_out(scripted) -> None:
    runs = [scripted.try_on(PICTURE, PICTURE, steps=3, seed=7) for _ in range(10)]

    async def follow(run) -> tuple[bool, bytes]:
        queued = [event async for event in run if isinstance(event, vtryon.Queued)]
        return bool(queued), (await run).picture.data

    results = await asyncio.gather(*map(follow, runs))
    assert any(queued for queued, _ in results)
    assert len({data for _, data in results}) == 1


async def test_a_stage_that_is_not_there_is_named_and_the_rest_stays_well() -> None:
    async with (
        embedded_mesh(
            backend="scripted", decoding_target="127.0.0.1:1", stage_connect_seconds=1
        ) as target,
        vtryon.Client(target) as client,
    ):
        for _ in range(2):
            with pytest.raises(
                vtryon.UnavailableError, match="decoding can't be reached"
            ) as caught:
                await client.try_on(PICTURE, PICTURE, steps=1, timeout_seconds=10)
            assert caught.value.stage == "decoding"
        [tensor] = await client.latent_encoder.encode([PICTURE])
        assert tensor.spec.shape == (16, 16, 12)


async def test_a_stage_that_starts_or_restarts_is_waited_for() -> None:
    port = free_port()
    decoding = {"backend": "scripted", "listen": f"127.0.0.1:{port}"}
    async with (
        embedded_mesh(backend="scripted", decoding_target=f"127.0.0.1:{port}") as target,
        vtryon.Client(target, retry=False) as client,
    ):
        for _ in ("starts", "restarts"):
            run = asyncio.create_task(client.try_on(PICTURE, PICTURE, steps=1))
            await asyncio.sleep(2)  # several attempts have failed
            assert not run.done()
            async with embedded_mesh(**decoding):
                assert (await run).picture.data


async def test_a_deadline_that_ends_first_still_names_the_stage_that_is_away() -> None:
    async with (
        embedded_mesh(backend="scripted", decoding_target="127.0.0.1:1") as target,
        vtryon.Client(target) as client,
    ):
        with pytest.raises(vtryon.UnavailableError, match="decoding can't be reached"):
            await client.try_on(PICTURE, PICTURE, steps=1, timeout_seconds=2)


async def test_a_broken_picture_is_the_latent_encoders_to_refuse(client, example) -> None:
    with pytest.raises(vtryon.RequestError) as caught:
        await client.try_on(example.person, b"\x89PNG\r\n\x1a\n and then nothing")
    assert caught.value.stage in {"latent-encoder", "text-encoder"}
    assert (await client.try_on(example.person, example.garment, steps=1)).picture.data


async def test_the_inline_call_gives_the_same_picture(mesh: str, client, example) -> None:
    from tests.support.pictures import encoded

    person, garment = encoded(example.person), encoded(example.garment)
    options = TryOnOptions(prompt=example.prompt, steps=2, seed=5)
    request = pipeline_pb2.TryOnInlineRequest(
        person=person, garments=[garment], options=options.to_proto()
    )
    received = b""
    async with grpc.aio.insecure_channel(mesh) as channel:
        stub = pipeline_pb2_grpc.PipelineServiceStub(channel)
        async for event in stub.TryOnInline(request):
            received += event.chunk.data
            last = event
    assert last.WhichOneof("event") == "finished"
    result = await client.try_on(person, garment, example.prompt, steps=2, seed=5)
    assert received == result.picture.data


async def test_an_inline_request_is_bounded(mesh: str) -> None:
    request = pipeline_pb2.TryOnInlineRequest(person=b"x" * (3 * 1024 * 1024 + 1))
    async with grpc.aio.insecure_channel(mesh) as channel:
        stub = pipeline_pb2_grpc.PipelineServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.TryOnInline(request):
                pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "use TryOn" in caught.value.details()


async def test_the_contracts_own_stubs_work_without_the_sdk(scripted_mesh: str) -> None:
    payload = Payload(PayloadKind.PERSON_IMAGE, len(PICTURE), image=vtryon.types.EncodedImage())
    start = TryOnStart(payloads=(payload,), options=TryOnOptions(prompt="wave", steps=1))

    async def requests():
        yield pipeline_pb2.TryOnRequest(start=start.to_proto())
        yield pipeline_pb2.TryOnRequest(chunk={"payload": 0, "offset": 0, "data": PICTURE})

    async with grpc.aio.insecure_channel(scripted_mesh) as channel:
        stub = pipeline_pb2_grpc.PipelineServiceStub(channel)
        events = [event async for event in stub.TryOn(requests())]
    assert all(isinstance(event, stream_pb2.Event) for event in events)
    assert events[-1].WhichOneof("event") == "finished"


async def test_a_failing_source_ends_the_call_with_its_cause(scripted: vtryon.Client) -> None:
    async def breaking():
        yield PICTURE[:10]
        raise OSError("the disk is gone")

    [picture] = await image_payloads([(PayloadKind.PERSON_IMAGE, PICTURE, "person")])
    call = StreamCall(
        scripted.channel,
        TRY_ON,
        TryOnStart(options=TryOnOptions(prompt="x")),
        [Outgoing(picture.payload, breaking())],
    )
    with pytest.raises(vtryon.StageError, match="the disk is gone"):
        async with call:
            async for _ in call:
                pass


async def test_a_relay_hands_on_the_same_bytes_and_ends_with_the_payload() -> None:
    fanout = Fanout([Payload(PayloadKind.IMAGE, 5), Payload(PayloadKind.IMAGE, 2)])
    relays = [fanout.relay(0), fanout.relay(0), fanout.relay(1)]
    for chunk in (Chunk(0, 0, b"abc"), Chunk(0, 3, b"de"), Chunk(1, 0, b"fg")):
        await fanout.pass_on(chunk)
    assert [[piece async for piece in relay] for relay in relays] == [
        [b"abc", b"de"],
        [b"abc", b"de"],
        [b"fg"],
    ]


async def test_what_comes_once_more_from_another_server_goes_on_where_it_stopped() -> None:
    payloads = (Payload(PayloadKind.IMAGE, 5),)
    fanout = Fanout(payloads)
    relay = fanout.relay(0)
    await fanout.pass_on(Chunk(0, 0, b"abc"))
    fanout.expect(Output(payloads))
    for chunk in (Chunk(0, 0, b"ab"), Chunk(0, 2, b"cd"), Chunk(0, 4, b"e")):
        await fanout.pass_on(chunk)
    assert b"".join([bytes(piece) async for piece in relay]) == b"abcde"
    with pytest.raises(vtryon.StageError, match="another shape"):
        fanout.expect(Output((Payload(PayloadKind.IMAGE, 6),)))


async def test_calls_that_send_no_payloads_leave_room_for_other_tenants() -> None:
    """Every permit is held by a tenant whose pictures do not arrive."""
    person = Payload(PayloadKind.PERSON_IMAGE, 1000, image=EncodedImage())
    start = TryOnStart((person,), TryOnOptions(steps=1))
    first = pipeline_pb2.TryOnRequest(start=start.to_proto())

    async def declare() -> AsyncIterator[pipeline_pb2.TryOnRequest]:
        yield first
        await asyncio.Event().wait()

    async with (
        scripted_mesh(max_requests=2) as target,
        grpc.aio.insecure_channel(target) as channel,
        vtryon.Client(target) as client,
    ):
        stub = pipeline_pb2_grpc.PipelineServiceStub(channel)
        held = [stub.TryOn(declare(), metadata=[("x-vtryon-tenant", "idle")]) for _ in range(2)]
        for call in held:
            assert (await call.read()).HasField("accepted")
        with pytest.raises(vtryon.OverloadedError):
            await client.acting_for("idle").try_on(PICTURE, steps=1, timeout_seconds=1)
        started = time.monotonic()
        await client.acting_for("other").try_on(PICTURE, steps=1, timeout_seconds=20)
        assert time.monotonic() - started < 5
        for call in held:
            call.cancel()
