"""Checks of a start message, before any payload is buffered."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from vtryon.errors import Reason, RequestError
from vtryon.tensors import byte_length
from vtryon.types import MAX_PICTURE_BYTES, Payload, PayloadKind


def check_payloads(payloads: Sequence[Payload], max_bytes: int) -> None:
    """Check declarations, before anything is kept.

    Raises:
        RequestError: a declaration contradicts itself, or is over the limit.
    """
    for number, payload in enumerate(payloads):
        name = f"payload {number} ({payload.kind or 'of no known kind'})"
        if payload.tensor is not None:
            _check_tensor(name, payload)
        elif payload.image is None:
            raise payload_invalid(f"{name} declares neither a tensor nor a picture")
        elif payload.byte_length > MAX_PICTURE_BYTES:
            raise _too_large(name, payload.byte_length, MAX_PICTURE_BYTES)
        if payload.byte_length == 0:
            raise payload_invalid(f"{name} is empty")
    total = sum(payload.byte_length for payload in payloads)
    if total > max_bytes:
        raise _too_large("the payloads together", total, max_bytes)


def _check_tensor(name: str, payload: Payload) -> None:
    spec = payload.tensor
    assert spec is not None
    if spec.data_type is None:
        raise payload_invalid(f"{name} has no element type")
    if not 1 <= len(spec.shape) <= 8 or min(spec.shape) < 1:
        raise payload_invalid(f"{name} has the shape {spec.shape}; 1 to 8 dimensions of 1 or more")
    if (wanted := byte_length(spec)) != payload.byte_length:
        raise payload_invalid(
            f"{name} declares {payload.byte_length} bytes; "
            f"{spec.data_type} {spec.shape} is {wanted}"
        )


def payload_invalid(message: str) -> RequestError:
    """Build the error of a payload that is missing, duplicated or invalid."""
    return RequestError(message, reason=Reason.PAYLOAD_INVALID)


def _too_large(name: str, size: int, limit: int) -> RequestError:
    return RequestError(
        f"{name}: {size} bytes are over the limit of {limit}",
        reason=Reason.PAYLOAD_TOO_LARGE,
        metadata={"limit_bytes": str(limit)},
    )


def unknown_enum(message: Message) -> str | None:
    """Return the path of a field whose enum value is newer than this code."""
    for descriptor, value in message.ListFields():
        values = value if descriptor.is_repeated else [value]
        if descriptor.enum_type is not None:
            if any(number not in descriptor.enum_type.values_by_number for number in values):
                return descriptor.name
        elif descriptor.message_type is not None:
            if descriptor.message_type.GetOptions().map_entry:
                continue  # ours hold text alone
            for item in values:
                if inner := unknown_enum(item):
                    return f"{descriptor.name}.{inner}"
    return None


def check_pictures(payloads: Sequence[Payload], max_garments: int) -> None:
    """Check the declared pictures of a try-on: the person, then garments.

    Raises:
        RequestError: the kinds or their number are invalid.
    """
    kinds = [payload.kind for payload in payloads]
    garments = kinds[1:]
    if (
        kinds[:1] != [PayloadKind.PERSON_IMAGE]
        or set(garments) - {PayloadKind.GARMENT_IMAGE}
        or len(garments) > max_garments
        or any(payload.image is None for payload in payloads)
    ):
        raise RequestError(
            "a try-on takes one payload of kind PERSON_IMAGE, then up to "
            f"{max_garments} of kind GARMENT_IMAGE",
            reason=Reason.PAYLOAD_INVALID,
        )
