from hypothesis import given
from hypothesis import strategies as st

from vtryon.events import Chunk
from vtryon.v1 import (
    decoding_pb2,
    latent_encoder_pb2,
    pipeline_pb2,
    sampling_pb2,
    stream_pb2,
    text_encoder_pb2,
)
from vtryon.wire.framing import EVENT_TAG, REQUEST_TAG, read_chunk, write_chunk

REQUESTS = (
    latent_encoder_pb2.EncodeLatentsRequest,
    text_encoder_pb2.EncodeTextRequest,
    sampling_pb2.SampleRequest,
    decoding_pb2.DecodeRequest,
    pipeline_pb2.TryOnRequest,
)
HOLDERS = [(REQUEST_TAG, request) for request in REQUESTS] + [(EVENT_TAG, stream_pb2.Event)]
fields = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=400)
)


@given(st.sampled_from(HOLDERS), fields)
def test_what_is_written_is_what_protobuf_writes(holder, values) -> None:
    tag, message = holder
    payload, offset, data = values
    theirs = message(chunk={"payload": payload, "offset": offset, "data": data})
    ours = write_chunk(tag, payload, offset, memoryview(data))
    assert ours == theirs.SerializeToString()
    assert read_chunk(tag, ours) == Chunk(payload, offset, data)


@given(st.binary(max_size=60))
def test_what_is_read_is_what_protobuf_reads(raw: bytes) -> None:
    chunk = read_chunk(REQUEST_TAG, raw)
    if chunk is not None and chunk.payload < 2**32 and chunk.offset < 2**64:
        message = sampling_pb2.SampleRequest.FromString(raw).chunk
        assert (message.payload, message.offset) == (chunk.payload, chunk.offset)
        assert message.data == chunk.data


def test_another_layout_is_left_to_protobuf() -> None:
    data_first = b"\x12\x07\x1a\x03abc\x10\x05"
    assert read_chunk(REQUEST_TAG, data_first) is None
    message = sampling_pb2.SampleRequest.FromString(data_first)
    assert (message.chunk.offset, message.chunk.data) == (5, b"abc")
    assert read_chunk(REQUEST_TAG, b"") is None
    assert read_chunk(REQUEST_TAG, b"\x12\x05") is None
