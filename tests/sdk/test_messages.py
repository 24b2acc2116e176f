import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtryon import events, types
from vtryon.errors import Reason
from vtryon.v1 import (
    error_reason_pb2,
    image_pb2,
    numerics_pb2,
    sampling_pb2,
    stream_pb2,
    tensor_pb2,
)
from vtryon.wire.status import REASONS

ENUMS = [
    (types.Stage, stream_pb2.Stage),
    (types.Priority, stream_pb2.Priority),
    (types.Profile, numerics_pb2.Profile),
    (types.SigmaSchedule, numerics_pb2.SigmaSchedule),
    (types.GuidanceNorm, numerics_pb2.GuidanceNorm),
    (types.ResizeFilter, numerics_pb2.ResizeFilter),
    (types.RopeLayout, numerics_pb2.RopeLayout),
    (types.ImageFormat, image_pb2.ImageFormat),
    (types.FitMethod, image_pb2.FitMethod),
    (types.DataType, tensor_pb2.DataType),
    (types.PayloadKind, tensor_pb2.PayloadKind),
    (Reason, error_reason_pb2.ErrorReason),
]


@pytest.mark.parametrize(("ours", "proto"), ENUMS, ids=lambda item: getattr(item, "__name__", ""))
def test_enums_have_the_members_of_the_contract(ours, proto) -> None:
    first, *names = proto.DESCRIPTOR.values_by_name
    prefix = first.removesuffix("UNSPECIFIED")
    assert [name.removeprefix(prefix) for name in names] == list(ours.__members__)


def test_every_reason_has_a_class_and_a_status() -> None:
    assert set(REASONS) == set(Reason)


finite = st.floats(allow_nan=False, allow_infinity=False)
starts = st.builds(
    types.SampleStart,
    numerics=st.none()
    | st.builds(types.Numerics, profile=st.none() | st.sampled_from(types.Profile)),
    width=st.integers(0, 2**32 - 1),
    height=st.integers(0, 2**32 - 1),
    steps=st.none() | st.integers(0, 2**32 - 1),
    true_cfg_scale=st.none() | finite,
    seed=st.none() | st.integers(0, 2**64 - 1),
    strength=st.none() | finite,
    sigmas=st.lists(finite, max_size=5).map(tuple),
    previews=st.none() | st.builds(types.PreviewPolicy, st.integers(0, 9), st.integers(0, 9)),
    priority=st.none() | st.sampled_from(types.Priority),
    resume=st.none() | st.builds(types.ResumePoint, st.integers(0, 9)),
)


@given(starts)
def test_a_start_survives_the_wire(start: types.SampleStart) -> None:
    raw = start.to_proto().SerializeToString()
    assert types.SampleStart.from_proto(sampling_pb2.SampleStart.FromString(raw)) == start


def test_zero_is_not_unset() -> None:
    start = types.SampleStart(seed=0, steps=0)
    read = types.SampleStart.from_proto(start.to_proto())
    assert (read.seed, read.steps, read.true_cfg_scale) == (0, 0, None)


def test_nan_survives_so_that_the_server_can_refuse_it() -> None:
    start = types.SampleStart(true_cfg_scale=math.nan)
    assert math.isnan(types.SampleStart.from_proto(start.to_proto()).true_cfg_scale)


@pytest.mark.parametrize(
    "event",
    [
        events.Accepted(stage=types.Stage.SAMPLING, seed=3, sigmas=(1.0, 0.0)),
        events.Queued(types.Stage.DECODING, 4),
        events.StageStarted(types.Stage.LATENT_ENCODER, "person", events.Accepted()),
        events.StepFinished(1, 4, 0.5, 0.25),
        events.StageFinished(types.Stage.DECODING, "", 0.5),
        events.Output((types.Payload(types.PayloadKind.IMAGE, 3, image=types.EncodedImage()),)),
        events.Chunk(1, 2, b"abc"),
        events.Finished(events.Ledger(1.0, (events.Hop(types.Stage.SAMPLING),))),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_survives_the_wire(event: events.Event) -> None:
    raw = events.to_proto(event).SerializeToString()
    assert events.from_proto(stream_pb2.Event.FromString(raw)) == event


def test_an_empty_event_is_no_event() -> None:
    with pytest.raises(ValueError, match="without an event"):
        events.from_proto(stream_pb2.Event())
    with pytest.raises(ValueError, match="without an event"):
        events.from_proto(stream_pb2.Event(progress=stream_pb2.Progress()))
