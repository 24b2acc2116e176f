"""The errors of vtryon, raised alike by clients and by servers.

    VtryonError                     .reason .metadata
    ├── SettingsError               the program or server is misconfigured: settings, checkpoint
    ├── RequestError                correct the request; .violations names each field
    ├── AccessError                 not authenticated or not permitted
    ├── OverloadedError             retry after .retry_after_seconds
    ├── UnavailableError            the server is unreachable or shutting down
    ├── DeadlineError               out of time; .completed_steps
    ├── RunCancelledError           the client cancelled its own call
    ├── StageError                  a stage failed; .stage names it
    └── ProtocolError               the peer violated the grammar of the stream

The class and gRPC status of each reason are in one table, `vtryon.wire.status.REASONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """error_reason.proto, without the prefix."""

    FIELD_INVALID = "FIELD_INVALID"
    NUMERICS_UNSUPPORTED = "NUMERICS_UNSUPPORTED"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    PAYLOAD_INVALID = "PAYLOAD_INVALID"
    TENSOR_NOT_FINITE = "TENSOR_NOT_FINITE"
    PICTURE_TOO_LARGE = "PICTURE_TOO_LARGE"
    PICTURE_FORMAT_UNSUPPORTED = "PICTURE_FORMAT_UNSUPPORTED"
    PICTURE_UNREADABLE = "PICTURE_UNREADABLE"
    STREAM_OUT_OF_ORDER = "STREAM_OUT_OF_ORDER"
    STREAM_INCOMPLETE = "STREAM_INCOMPLETE"
    MESSAGE_MALFORMED = "MESSAGE_MALFORMED"
    QUEUE_FULL = "QUEUE_FULL"
    DEADLINE_UNREACHABLE = "DEADLINE_UNREACHABLE"
    STAGE_UNAVAILABLE = "STAGE_UNAVAILABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    CHECKPOINT_NOT_FOUND = "CHECKPOINT_NOT_FOUND"
    CHECKPOINT_UNSAFE = "CHECKPOINT_UNSAFE"
    CHECKPOINT_CORRUPT = "CHECKPOINT_CORRUPT"
    CHECKPOINT_UNSUPPORTED = "CHECKPOINT_UNSUPPORTED"
    MODEL_CHANGED = "MODEL_CHANGED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    STAGE_FAILED = "STAGE_FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that does not hold, and why."""

    field: str
    description: str


class VtryonError(Exception):
    """Base class of all errors of vtryon.

    Attributes:
        reason: machine-readable reason; None if the peer sent none.
        metadata: short facts by name, such as the stage or a limit.
    """

    default_reason: ClassVar[Reason | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})

    @property
    def stage(self) -> str | None:
        """Name of the stage that failed, where it is known."""
        return self.metadata.get("stage")


class SettingsError(VtryonError):
    """The program or a server is set up wrongly."""


class RequestError(VtryonError):
    """The request can't be served as it is; the same one will fail again."""

    default_reason = Reason.FIELD_INVALID

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = violations


class AccessError(VtryonError):
    """Credentials are missing, wrong, or not enough."""

    default_reason = Reason.UNAUTHENTICATED


class OverloadedError(VtryonError):
    """There is no room now."""

    default_reason = Reason.QUEUE_FULL

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float = 1.0,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(VtryonError):
    """The server can't be reached, or is going away."""

    default_reason = Reason.STAGE_UNAVAILABLE


class DeadlineError(VtryonError):
    """Out of time."""

    default_reason = Reason.DEADLINE_PASSED

    @property
    def completed_steps(self) -> int:
        """Denoise steps that were done when time ran out."""
        return int(self.metadata.get("completed_steps", "0"))


class RunCancelledError(VtryonError):
    """The caller left its own call."""

    default_reason = Reason.CANCELLED


class StageError(VtryonError):
    """A stage failed; its log has the cause."""

    default_reason = Reason.STAGE_FAILED


class ProtocolError(VtryonError):
    """The other end broke the grammar of the stream."""

    default_reason = Reason.STREAM_OUT_OF_ORDER
