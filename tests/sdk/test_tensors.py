import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from vtryon import Reason, RequestError, Tensor
from vtryon.tensors import byte_length
from vtryon.types import DataType, PayloadKind, TensorSpec

KINDS = [np.float32, np.float16, np.int64, np.uint8, np.bool_]


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5)))
def test_floats_survive(array: np.ndarray) -> None:
    np.testing.assert_array_equal(Tensor.from_numpy(array).to_numpy(), array)


@pytest.mark.parametrize("kind", KINDS)
def test_each_element_type_survives(kind: type) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind)
    tensor = Tensor.from_numpy(array)
    assert byte_length(tensor.spec) == array.nbytes == len(memoryview(tensor.data).cast("B"))
    np.testing.assert_array_equal(tensor.to_numpy(), array)


def test_big_endian_and_strided_arrays_come_out_as_they_look() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(Tensor.from_numpy(array).to_numpy(), array)


def test_bfloat16_reads_as_float32() -> None:
    bits = np.array([0x3F80, 0xC000, 0x3FC0], "<u2")
    tensor = Tensor(TensorSpec(DataType.BF16, (3,)), bits.tobytes())
    assert tensor.to_numpy().tolist() == [1.0, -2.0, 1.5]


def test_an_element_type_without_a_place_is_refused() -> None:
    with pytest.raises(RequestError, match="float64") as caught:
        Tensor.from_numpy(np.zeros(3))
    assert caught.value.reason is Reason.PAYLOAD_INVALID


def test_a_tensor_declares_itself() -> None:
    outgoing = Tensor.from_numpy(np.zeros((2, 3), np.float32)).outgoing(PayloadKind.LATENTS)
    assert outgoing.payload.byte_length == 24
    assert outgoing.payload.tensor == TensorSpec(DataType.FP32, (2, 3))
