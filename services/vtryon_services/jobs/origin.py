"""Origin of a job: metadata that is copied to every message about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opentelemetry import propagate
from sqlalchemy import Row

LONGEST_CORRELATION_ID = 1024
_TRACE = ("traceparent", "tracestate", "baggage")
_LONGEST_BYTES = 4096  # of each; a longer one is dropped: gRPC takes 8 KiB of metadata


@dataclass(frozen=True, slots=True)
class Origin:
    """The trace that a job's attempts and outcomes are part of, and a caller's own id of it.

    Attributes:
        traceparent: W3C's.
        tracestate: W3C's.
        baggage: W3C's.
        correlation_id: of the caller's own system.
    """

    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""
    correlation_id: bytes = b""

    @classmethod
    def here(cls, correlation_id: bytes = b"") -> Origin:
        """Take the trace of the call that is served."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        trace = {name: carrier.get(name, "") for name in _TRACE}
        kept = {name: value for name, value in trace.items() if len(value) <= _LONGEST_BYTES}
        return cls(**kept, correlation_id=correlation_id)

    @classmethod
    def of(cls, row: Row[Any]) -> Origin:
        """Read the columns of a job or of an outcome."""
        return cls(row.traceparent, row.tracestate, row.baggage, row.correlation_id)

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a job or of an outcome."""
        return asdict(self)

    @property
    def carrier(self) -> Mapping[str, str]:
        """Carrier for `propagate.extract`."""
        return {name: value for name in _TRACE if (value := getattr(self, name))}
