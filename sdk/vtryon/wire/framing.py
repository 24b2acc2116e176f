"""Chunk messages, encoded and decoded without protobuf.

protobuf would copy the bytes of a chunk twice more at each end, which halves the throughput of
large tensors. The encoder produces the same bytes as protobuf; the decoder handles that layout
only, and leaves every other one (reordered or unknown fields) to protobuf.

Source: the protobuf wire format; `Chunk` in tensor.proto and the messages that contain it.
"""

from __future__ import annotations

from vtryon import events
from vtryon.events import Chunk, Event
from vtryon.v1 import sampling_pb2, stream_pb2, tensor_pb2
from vtryon.wire.payloads import Buffer

_LENGTH_DELIMITED = 2
_MAX_VARINT_BYTES = 10


def _tag(number: int, wire_type: int) -> int:
    return number << 3 | wire_type


# The five request messages have their chunk under one number.
REQUEST_TAG = _tag(sampling_pb2.SampleRequest.CHUNK_FIELD_NUMBER, _LENGTH_DELIMITED)
EVENT_TAG = _tag(stream_pb2.Event.CHUNK_FIELD_NUMBER, _LENGTH_DELIMITED)
_PAYLOAD_TAG = _tag(tensor_pb2.Chunk.PAYLOAD_FIELD_NUMBER, 0)
_OFFSET_TAG = _tag(tensor_pb2.Chunk.OFFSET_FIELD_NUMBER, 0)
_DATA_TAG = _tag(tensor_pb2.Chunk.DATA_FIELD_NUMBER, _LENGTH_DELIMITED)


def write_chunk(tag: int, payload: int, offset: int, data: Buffer) -> bytes:
    """Write the message that holds a chunk, copying its bytes once."""
    head = bytearray()
    for field, value in ((_PAYLOAD_TAG, payload), (_OFFSET_TAG, offset)):
        if value:
            head.append(field)
            _write_varint(head, value)
    head.append(_DATA_TAG)
    _write_varint(head, len(data))
    start = bytearray((tag,))
    _write_varint(start, len(head) + len(data))
    return b"".join((start, head, data))


def write_event(event: Event) -> bytes:
    """Write the message that holds an event."""
    if isinstance(event, Chunk):
        return write_chunk(EVENT_TAG, event.payload, event.offset, event.data)
    return events.to_proto(event).SerializeToString()


def read_chunk(tag: int, raw: bytes) -> Chunk | None:
    """Read a message that holds a chunk, copying nothing; None where it is not laid out as ours."""
    try:
        if raw[0] != tag:
            return None
        length, at = read_varint(raw, 1)
        if at + length != len(raw):
            return None
        payload, at = _read_optional(raw, at, _PAYLOAD_TAG)
        offset, at = _read_optional(raw, at, _OFFSET_TAG)
        if raw[at] != _DATA_TAG:
            return None
        size, at = read_varint(raw, at + 1)
    except (IndexError, ValueError):
        return None
    if at + size != len(raw):
        return None
    return Chunk(payload, offset, memoryview(raw)[at:])


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Read a number of at most 64 bits; give it and where the next field begins.

    Raises:
        IndexError: the bytes end before the number does.
        ValueError: the number has more bytes than any of 64 bits.
    """
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint of more than 10 bytes")


def _read_optional(raw: bytes, at: int, tag: int) -> tuple[int, int]:
    return read_varint(raw, at + 1) if raw[at] == tag else (0, at)
