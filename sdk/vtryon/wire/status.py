"""Errors to gRPC statuses with google.rpc details, and back.

`REASONS` is the only table of reason, class and status: servers map errors to statuses with it, and
clients statuses to errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from vtryon.errors import (
    AccessError,
    DeadlineError,
    OverloadedError,
    ProtocolError,
    Reason,
    RequestError,
    RunCancelledError,
    SettingsError,
    StageError,
    UnavailableError,
    Violation,
    VtryonError,
)


class ReasonRow(NamedTuple):
    """Error class and gRPC status of a reason."""

    error: type[VtryonError]
    status: grpc.StatusCode


_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_SETUP = ReasonRow(SettingsError, grpc.StatusCode.FAILED_PRECONDITION)

REASONS: dict[Reason, ReasonRow] = {
    Reason.FIELD_INVALID: ReasonRow(RequestError, _INVALID),
    Reason.NUMERICS_UNSUPPORTED: ReasonRow(RequestError, _INVALID),
    Reason.PAYLOAD_TOO_LARGE: ReasonRow(RequestError, _INVALID),
    Reason.PAYLOAD_INVALID: ReasonRow(RequestError, _INVALID),
    Reason.TENSOR_NOT_FINITE: ReasonRow(RequestError, _INVALID),
    Reason.PICTURE_TOO_LARGE: ReasonRow(RequestError, _INVALID),
    Reason.PICTURE_FORMAT_UNSUPPORTED: ReasonRow(RequestError, _INVALID),
    Reason.PICTURE_UNREADABLE: ReasonRow(RequestError, _INVALID),
    Reason.STREAM_OUT_OF_ORDER: ReasonRow(ProtocolError, _INVALID),
    Reason.STREAM_INCOMPLETE: ReasonRow(ProtocolError, _INVALID),
    Reason.MESSAGE_MALFORMED: ReasonRow(ProtocolError, _INVALID),
    Reason.QUEUE_FULL: ReasonRow(OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Reason.DEADLINE_UNREACHABLE: ReasonRow(OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Reason.STAGE_UNAVAILABLE: ReasonRow(UnavailableError, grpc.StatusCode.UNAVAILABLE),
    Reason.SHUTTING_DOWN: ReasonRow(UnavailableError, grpc.StatusCode.UNAVAILABLE),
    Reason.DEADLINE_PASSED: ReasonRow(DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    Reason.CHECKPOINT_NOT_FOUND: _SETUP,
    Reason.CHECKPOINT_UNSAFE: _SETUP,
    Reason.CHECKPOINT_CORRUPT: _SETUP,
    Reason.CHECKPOINT_UNSUPPORTED: _SETUP,
    Reason.MODEL_CHANGED: ReasonRow(RequestError, grpc.StatusCode.FAILED_PRECONDITION),
    Reason.UNAUTHENTICATED: ReasonRow(AccessError, grpc.StatusCode.UNAUTHENTICATED),
    Reason.PERMISSION_DENIED: ReasonRow(AccessError, grpc.StatusCode.PERMISSION_DENIED),
    Reason.NOT_FOUND: ReasonRow(RequestError, grpc.StatusCode.NOT_FOUND),
    Reason.ALREADY_EXISTS: ReasonRow(RequestError, grpc.StatusCode.ALREADY_EXISTS),
    Reason.STAGE_FAILED: ReasonRow(StageError, grpc.StatusCode.INTERNAL),
    Reason.CANCELLED: ReasonRow(RunCancelledError, grpc.StatusCode.CANCELLED),
}

DOMAIN = "vtryon"
DETAILS_KEY = "grpc-status-details-bin"

# What a status without our details is raised as: from proxies, and from gRPC itself.
_PLAIN = {
    row.status: reason
    for reason, row in reversed(REASONS.items())
    if row.status not in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
}

# gRPC refuses more than 8 KiB of trailing metadata, and calls that RESOURCE_EXHAUSTED. The details
# travel in base64, the message percent-encoded: three bytes for one that is not ASCII.
MAX_VIOLATIONS = 20
MAX_MESSAGE_BYTES = 800
MAX_DETAILS_BYTES = 3840
_MAX_TEXT_BYTES = 256

# How gRPC itself refuses what is too large, in either direction; no sign of overload.
_MESSAGE_TOO_LARGE = "larger than max"
_METADATA_TOO_LARGE = "metadata size exceeds"

# How a proxy ends a stream whose server went away in the middle.
_RESET = "RST_STREAM"


class RpcStatus(NamedTuple):
    """Status of a call: code, message and trailing metadata."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_rpc(error: VtryonError) -> RpcStatus:
    """Make the status of an error; an error without a reason is a failure of the stage."""
    reason = error.reason or Reason.STAGE_FAILED
    code = REASONS[reason].status
    metadata = {name: shortened(value) for name, value in error.metadata.items()}
    message = shortened(error.message, MAX_MESSAGE_BYTES)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=metadata)
    ]
    wait: float | None = getattr(error, "retry_after_seconds", None)
    if wait is not None:
        details.append(_retry_info(wait))
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.append(_packed(detail))
    if isinstance(error, RequestError) and error.violations:
        status.details.append(_bad_request(error.violations, status.ByteSize()))
    return RpcStatus(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def from_rpc(
    code: grpc.StatusCode, message: str, trailing_metadata: Iterable[tuple[str, str | bytes]] | None
) -> VtryonError:
    """Make the error of a failed call."""
    details = _details(trailing_metadata or ())
    reason = _reason(details, code, message)
    metadata = dict(details.info.metadata)
    if code is grpc.StatusCode.UNIMPLEMENTED and not details.info.reason:
        message = f"the server does not offer this call ({message})"
    cls = REASONS[reason].error
    if issubclass(cls, RequestError):
        return cls(message, reason=reason, metadata=metadata, violations=details.violations)
    if issubclass(cls, OverloadedError):
        wait = details.retry_after_seconds
        return cls(message, reason=reason, metadata=metadata, retry_after_seconds=wait)
    if not details.info.reason:
        metadata["status"] = code.name
    return cls(message, reason=reason, metadata=metadata)


def from_reason(reason: Reason, message: str, metadata: Mapping[str, str]) -> VtryonError:
    """Build the error of a failure that was reported without a status."""
    return REASONS[reason].error(message, reason=reason, metadata=metadata)


def from_aio_error(error: grpc.aio.AioRpcError) -> VtryonError:
    """Make the error of grpc.aio's exception."""
    return from_rpc(error.code(), error.details() or error.code().name, error.trailing_metadata())


class _Details(NamedTuple):
    info: error_details_pb2.ErrorInfo
    violations: tuple[Violation, ...]
    retry_after_seconds: float


def _details(trailing_metadata: Iterable[tuple[str, str | bytes]]) -> _Details:
    status = status_pb2.Status()
    packed = next((value for key, value in trailing_metadata if key == DETAILS_KEY), b"")
    try:
        status.ParseFromString(packed if isinstance(packed, bytes) else packed.encode())
    except DecodeError:
        status.Clear()
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1))
    for detail in status.details:
        for message in (info, bad, retry):
            detail.Unpack(message)
    violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
    return _Details(info, violations, retry.retry_delay.ToTimedelta().total_seconds())


def _reason(details: _Details, code: grpc.StatusCode, message: str) -> Reason:
    if details.info.domain == DOMAIN and details.info.reason in Reason.__members__:
        return Reason[details.info.reason]
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _MESSAGE_TOO_LARGE in message:
        return Reason.PAYLOAD_TOO_LARGE
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _METADATA_TOO_LARGE in message:
        return Reason.MESSAGE_MALFORMED
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return Reason.FIELD_INVALID
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Reason.STAGE_UNAVAILABLE  # nobody there serves it
    if _RESET in message and code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}:
        return Reason.STAGE_UNAVAILABLE
    return _PLAIN.get(code, StageError.default_reason)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _bad_request(violations: Sequence[Violation], taken_bytes: int) -> any_pb2.Any:
    """Pack the first violations, as many as there is room for."""
    bad = error_details_pb2.BadRequest()
    for violation in violations[:MAX_VIOLATIONS]:
        bad.field_violations.add(
            field=shortened(violation.field), description=shortened(violation.description)
        )
        if taken_bytes + _packed(bad).ByteSize() > MAX_DETAILS_BYTES:
            del bad.field_violations[-1]
            break
    return _packed(bad)


def shortened(text: str, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """Cut text to so many bytes of UTF-8, with an ellipsis where something was cut."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode(errors="ignore") + "…"


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)
