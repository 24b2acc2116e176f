import base64
import urllib.parse

import grpc
import pytest
from google.rpc import status_pb2
from tests.support.pictures import png

import vtryon
from vtryon.errors import OverloadedError, Reason, RequestError, Violation
from vtryon.types import DecodeStart, Stage
from vtryon.v1 import decoding_pb2
from vtryon.wire import status
from vtryon.wire.status import REASONS
from vtryon.wire.stream import StreamCall
from vtryon.wire.stream import StreamMethod as ClientMethod
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.method import Method
from vtryon_services.rpc.serve import Server
from vtryon_services.stages.decoding.settings import DecodingSettings

FAIL = ClientMethod("/vtryon.test.Failing/Fail", decoding_pb2.DecodeRequest)


async def fail(start: DecodeStart, _incoming, _call):
    """Raise the reason whose number came as the quality."""
    reason = list(Reason)[start.quality]
    if REASONS[reason].error is OverloadedError:
        raise OverloadedError("no room", reason=reason, retry_after_seconds=2.5)
    raise REASONS[reason].error(f"because of {reason}", reason=reason, metadata={"limit": "7"})
    yield


@pytest.fixture(scope="module")
async def failing():
    settings = DecodingSettings.load(log_level="error")
    server = Server(settings)
    target = server.bind("127.0.0.1:0")
    method = Method("Fail", decoding_pb2.DecodeRequest, DecodeStart, fail)
    await server.start([Service(Stage.DECODING, "vtryon.test.Failing", (method,), settings)])
    async with vtryon.Channel(target) as channel:
        yield channel
    await server.drain()


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_walks_through_a_real_server_and_back(failing, reason: Reason) -> None:
    start = DecodeStart(quality=list(Reason).index(reason))
    with pytest.raises(REASONS[reason].error) as caught:
        async with StreamCall(failing, FAIL, start) as call:
            async for _ in call:
                pass
    error = caught.value
    assert type(error) is REASONS[reason].error
    assert error.reason is reason
    assert error.stage == "decoding"
    if isinstance(error, OverloadedError):
        assert error.retry_after_seconds == 2.5
    else:
        assert error.message == f"because of {reason}"
        assert error.metadata["limit"] == "7"


def test_violations_survive_the_wire() -> None:
    violations = (Violation("steps", "too many"), Violation("seed", "negative"))
    sent = status.to_rpc(RequestError("two fields", violations=violations))
    assert sent.code is grpc.StatusCode.INVALID_ARGUMENT
    assert status.from_rpc(*sent).violations == violations


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection reset", vtryon.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", vtryon.DeadlineError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "overflow", vtryon.OverloadedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max (5 vs. 4)", vtryon.RequestError),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "received trailing metadata size exceeds hard limit (18000 vs. 16384)",
            vtryon.ProtocolError,
        ),
        (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied", vtryon.AccessError),
        (grpc.StatusCode.UNAUTHENTICATED, "Jwt is missing", vtryon.AccessError),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", vtryon.UnavailableError),
        (
            grpc.StatusCode.INTERNAL,
            "Received RST_STREAM with error code 2",
            vtryon.UnavailableError,
        ),
    ],
)
def test_a_status_without_our_details_has_a_class_too(code, message, kind) -> None:
    for trailing in (None, (), (("grpc-status-details-bin", b"\xff\xff"),)):
        error = status.from_rpc(code, message, trailing)
        assert type(error) is kind
        assert (
            error.metadata["status"] == code.name
            if kind
            not in {
                vtryon.OverloadedError,
                vtryon.RequestError,
            }
            else True
        )


@pytest.mark.parametrize("count", [1, 20, 21, 400])
async def test_a_refusal_of_many_fields_stays_a_refusal(scripted, count: int) -> None:
    """Also by a caller that knows nothing of the SDK's ranges: the server's status arrives."""
    with pytest.raises(RequestError) as caught:
        await scripted.try_on(png(), steps=None, sigmas=[2.0] * count)
    error = caught.value
    assert error.reason is Reason.FIELD_INVALID
    assert 1 <= len(error.violations) <= min(count, status.MAX_VIOLATIONS)
    assert error.violations[0].field == "sigmas.0"
    counted = error.message.startswith(f"{count} fields are invalid")
    assert counted is (count > status.MAX_VIOLATIONS)


@pytest.mark.parametrize("letter", ["x", "é", "画"])
def test_a_status_fits_into_the_metadata_that_grpc_accepts(letter: str) -> None:
    long = letter * 20_000
    violations = tuple(Violation(f"field {number} {long}", long) for number in range(50))
    error = RequestError(long, metadata={"stage": long}, violations=violations)
    sent = status.to_rpc(error)
    [(_, details)] = sent.trailing_metadata
    header = urllib.parse.quote(sent.message)
    assert len(base64.b64encode(details)) + len(header) < 8 * 1024
    received = status.from_rpc(*sent)
    assert received.reason is Reason.FIELD_INVALID
    assert received.violations
    assert status_pb2.Status.FromString(details).message == sent.message  # as grpcio-status wants
