"""No message of a caller holds the event loop, whatever it repeats."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import time
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

import vtryon.v1
from vtryon.wire.framing import REQUEST_TAG, read_chunk
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.rpc.message_limits import MAX_ITEMS

SIZE = 3_600_000  # just below what gRPC takes


def services() -> Iterator[ServiceDescriptor]:
    for module in pkgutil.iter_modules(vtryon.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"vtryon.v1.{module.name}").DESCRIPTOR
            yield from file.services_by_name.values()


METHODS = [method for service in services() for method in service.methods]


def repeated(message: Descriptor, path: tuple = ()) -> Iterator[tuple]:
    """Every repeated field of a message at any depth, with the fields on the way to it."""
    for field in message.fields:
        if field.is_repeated:
            yield (*path, field)
        if field.message_type and not field.message_type.GetOptions().map_entry:
            yield from repeated(field.message_type, (*path, field))


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def flood(path: tuple) -> bytes:
    """A message whose field at the end of the path has as many items as fit."""
    *outer, field = path
    kinds_of_two_bytes = field.message_type is not None or field.type == field.TYPE_BYTES
    if kinds_of_two_bytes:
        item = varint(field.number << 3 | 2) + b"\0"
        body = item * (SIZE // len(item))
    else:
        body = varint(field.number << 3 | 2) + varint(SIZE) + b"\1" * SIZE
        if field.type == field.TYPE_DOUBLE:
            body = varint(field.number << 3 | 2) + varint(SIZE // 8 * 8) + b"\1" * (SIZE // 8 * 8)
    for one in reversed(outer):
        body = varint(one.number << 3 | 2) + varint(len(body)) + body
    return body


FLOODS = [
    pytest.param(method, path, id=f"{method.full_name}-{'.'.join(one.name for one in path)}")
    for method in METHODS
    for path in repeated(method.input_type)
]


@pytest.fixture(scope="module")
async def served(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("jobs")
    settings = JobsSettings.load(
        log_level="error",
        database_url=f"sqlite:///{folder}/jobs.sqlite",
        artifacts_url=str(folder / "pictures"),
        drain_grace_seconds=0,
    )
    given = settings.model_dump(exclude={"listen", "pipeline_target"}, exclude_unset=True)
    names = ["latent-encoder", "text-encoder", "sampling", "decoding", "pipeline", "jobs"]
    async with host(settings, names, "127.0.0.1:0", backend="scripted", **given) as serving:
        yield serving.address


def test_every_repeated_field_of_a_request_has_a_limit() -> None:
    fields = {path[-1].full_name for method in METHODS for path in repeated(method.input_type)}
    assert fields == set(MAX_ITEMS)
    assert len({method.full_name for method in METHODS}) > 12


async def send(channel: grpc.aio.Channel, method: MethodDescriptor, body: bytes) -> grpc.StatusCode:
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{'stream' if method.client_streaming else 'unary'}_"
    kind += "stream" if method.server_streaming else "unary"
    call = getattr(channel, kind)(path)
    started = call(iter([body]) if method.client_streaming else body, timeout=20)
    try:
        if method.server_streaming:
            async for _ in started:
                pass
        else:
            await started
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("method", "path"), FLOODS)
async def test_millions_of_items_are_refused_and_health_answers(served, method, path) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(served) as channel,
        grpc.aio.insecure_channel(served, options=options) as beside,
    ):
        stub = health_pb2_grpc.HealthStub(beside)
        await stub.Check(health_pb2.HealthCheckRequest())
        attack = asyncio.create_task(send(channel, method, flood(path)))
        while not attack.done():
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await attack is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("method", "path"), FLOODS)
def test_millions_of_items_cost_less_than_a_turn_of_the_loop(method, path) -> None:
    """Measured in processor time of this thread, so that a loaded machine changes nothing."""
    from google.protobuf import message_factory

    from vtryon.errors import VtryonError
    from vtryon_services.rpc.message_limits import check_bytes, check_items

    kind = message_factory.GetMessageClass(method.input_type)
    bulk = ("person", "garments") if method.name == "TryOnInline" else ()
    body = flood(path)
    started = time.thread_time()
    with pytest.raises(VtryonError):
        check_bytes(body, kind, bulk)
        check_items(kind.FromString(body))
    assert time.thread_time() - started < 0.05


def test_a_number_without_end_is_not_read_to_its_end() -> None:
    body = bytes([REQUEST_TAG]) + b"\xff" * SIZE
    started = time.thread_time()
    assert read_chunk(REQUEST_TAG, body) is None
    assert time.thread_time() - started < 0.05


async def test_thousands_of_items_in_a_small_message_are_refused_by_name(served) -> None:
    inner = b"\x0a\x00" * 20_000
    body = b"\x0a" + varint(len(inner)) + inner
    async with grpc.aio.insecure_channel(served) as channel:
        call = channel.stream_stream("/vtryon.v1.PipelineService/TryOn")(iter([body]), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError, match="payloads: takes at most 64 items"):
            async for _ in call:
                pass


async def test_a_second_message_where_a_chunk_can_come_is_bounded_too(served) -> None:
    from vtryon.types import EncodedImage, Payload, PayloadKind, TryOnOptions, TryOnStart
    from vtryon.v1 import pipeline_pb2

    payload = Payload(PayloadKind.PERSON_IMAGE, 10, image=EncodedImage())
    start = pipeline_pb2.TryOnRequest(start=TryOnStart((payload,), TryOnOptions()).to_proto())
    inner = b"\x0a\x00" * (SIZE // 2)
    body = b"\x0a" + varint(len(inner)) + inner
    async with grpc.aio.insecure_channel(served) as channel:
        path = "/vtryon.v1.PipelineService/TryOn"
        call = channel.stream_stream(path)(iter([start.SerializeToString(), body]), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError, match="where a chunk can come"):
            async for _ in call:
                pass
