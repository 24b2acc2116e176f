"""Size limits of request messages, checked before conversion: one table for all methods.

A message is bounded in bytes before it is parsed, and in items per repeated field before anything
iterates over it. The limits are coarse: they bound the work on the event loop. Each method checks
exact ranges, such as the number of garments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from vtryon.errors import ProtocolError, Reason, RequestError, Violation
from vtryon.wire.framing import read_varint
from vtryon.wire.grammar import MAX_CHUNK_BYTES

# Everything of a request but payloads: options, labels, declarations.
MAX_MESSAGE_BYTES = 64 * 1024
# The largest chunk, with its index and offset.
MAX_CHUNK_MESSAGE_BYTES = MAX_CHUNK_BYTES + 64
# Fields at the top level of a message that carries bytes.
_MAX_FIELDS = 64

# Items of each repeated field of each request message.
MAX_ITEMS: Mapping[str, int] = {
    "vtryon.v1.CreateJobStart.labels": 64,
    "vtryon.v1.CreateJobStart.payloads": 64,
    "vtryon.v1.DecodeStart.payloads": 64,
    "vtryon.v1.EncodeLatentsStart.payloads": 64,
    "vtryon.v1.EncodeTextStart.payloads": 64,
    "vtryon.v1.ListJobsRequest.states": 64,
    "vtryon.v1.SampleStart.loras": 64,
    "vtryon.v1.SampleStart.payloads": 64,
    "vtryon.v1.SampleStart.sigmas": 1024,
    "vtryon.v1.TakeOutcomesRequest.published": 8192,
    "vtryon.v1.Tensor.shape": 64,
    "vtryon.v1.TryOnInlineRequest.garments": 64,
    "vtryon.v1.TryOnOptions.loras": 64,
    "vtryon.v1.TryOnOptions.sigmas": 1024,
    "vtryon.v1.TryOnStart.payloads": 64,
}


def check_bytes(raw: bytes, kind: type[Message], bulk: Collection[str] = ()) -> None:
    """Check a message's size before it is parsed.

    Args:
        raw: the message.
        kind: its message class.
        bulk: names of the fields with a picture's bytes, which have a separate limit.

    Raises:
        RequestError: the message without its bulk fields exceeds the limit.
        ProtocolError: the message is not protobuf, or has too many fields.
    """
    if len(raw) <= MAX_MESSAGE_BYTES:
        return
    size = len(raw)
    if bulk:
        numbers = {kind.DESCRIPTOR.fields_by_name[name].number for name in bulk}
        size = sum(size for number, size in _top_level(raw, kind) if number not in numbers)
    if size > MAX_MESSAGE_BYTES:
        raise RequestError(
            f"{kind.DESCRIPTOR.name}: {size} bytes without payloads are over the limit of "
            f"{MAX_MESSAGE_BYTES}; send pictures and tensors in chunks",
            reason=Reason.PAYLOAD_TOO_LARGE,
            metadata={"limit_bytes": str(MAX_MESSAGE_BYTES)},
        )


def check_items(message: Message) -> None:
    """Check how many items each repeated field holds, at any depth.

    Raises:
        RequestError: a field holds more than the table allows; names the field.
    """
    for field, value in message.ListFields():
        if field.is_repeated and len(value) > MAX_ITEMS[field.full_name]:
            words = f"takes at most {MAX_ITEMS[field.full_name]} items, and there are {len(value)}"
            violation = Violation(field.name, words)
            raise RequestError(f"{field.name}: {words}", violations=(violation,))
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for item in value if field.is_repeated else (value,):
                check_items(item)


def _top_level(raw: bytes, kind: type[Message]) -> Iterator[tuple[int, int]]:
    """Give number and size of each field at the top level, without looking inside."""
    at = 0
    try:
        for _ in range(_MAX_FIELDS):
            if at == len(raw):
                return
            begin = at
            tag, at = read_varint(raw, at)
            at = _SKIP[tag & 7](raw, at)
            yield tag >> 3, at - begin
    except (IndexError, KeyError, ValueError) as error:
        name = kind.DESCRIPTOR.name
        message = f"bytes that are no {name}"
        raise ProtocolError(message, reason=Reason.MESSAGE_MALFORMED) from error
    name = kind.DESCRIPTOR.name
    raise ProtocolError(f"{name} has over {_MAX_FIELDS} fields", reason=Reason.MESSAGE_MALFORMED)


def _skip_bytes(raw: bytes, at: int) -> int:
    size, at = read_varint(raw, at)
    if at + size > len(raw):
        raise IndexError(at + size)
    return at + size


# By wire type; groups (3 and 4) are in none of our messages.
_SKIP: dict[int, Callable[[bytes, int], Any]] = {
    0: lambda raw, at: read_varint(raw, at)[1],
    1: lambda _, at: at + 8,
    2: _skip_bytes,
    5: lambda _, at: at + 4,
}
