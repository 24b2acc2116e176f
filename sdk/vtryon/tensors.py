"""Tensors as they cross the wire: a spec and the bytes, in and out of numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtryon.arguments import argument_error, check_kind
from vtryon.errors import Reason, RequestError
from vtryon.types import DataType, Payload, PayloadKind, TensorSpec
from vtryon.wire.payloads import Buffer, Outgoing

if TYPE_CHECKING:
    import numpy as np

_NUMPY_NAMES = {
    DataType.FP32: "<f4",
    DataType.FP16: "<f2",
    DataType.INT64: "<i8",
    DataType.UINT8: "|u1",
    DataType.BOOL: "|b1",
}


_FROM_NUMPY = "Tensor.from_numpy makes one of an array"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An n-dimensional array: element type, shape, and little-endian bytes in C order."""

    spec: TensorSpec
    data: Buffer

    def __post_init__(self) -> None:
        """Reject values that are not a spec or bytes."""
        check_kind("spec", self.spec, TensorSpec, "a TensorSpec", _FROM_NUMPY)
        check_kind("data", self.data, (bytes, bytearray, memoryview), "bytes", _FROM_NUMPY)

    def __repr__(self) -> str:
        return f"<Tensor: {self.spec.data_type} {self.spec.shape}, {len(self.data)} bytes>"

    @classmethod
    def from_numpy(cls, array: np.ndarray) -> Tensor:
        """Take an array; float32, float16, int64, uint8 and bool have a place on the wire.

        Raises:
            RequestError: another element type, or no array.
        """
        import numpy as np

        try:
            plain = np.ascontiguousarray(array)
        except (TypeError, ValueError) as error:
            kind = type(array).__name__
            raise argument_error("array", f"takes a NumPy array, not {kind}: {error}") from None
        name = plain.dtype.newbyteorder("<").str
        data_type = next((kind for kind, known in _NUMPY_NAMES.items() if known == name), None)
        if data_type is None:
            raise RequestError(
                f"arrays of {plain.dtype} have no place on the wire; "
                f"convert to one of float32, float16, int64, uint8, bool",
                reason=Reason.PAYLOAD_INVALID,
            )
        return cls(TensorSpec(data_type, plain.shape), plain.astype(name, copy=False).data)

    def to_numpy(self) -> np.ndarray:
        """Give an array; BF16, which numpy lacks, comes as float32 of the same values.

        Shapes:
            result: spec.shape.
        """
        import numpy as np

        if self.spec.data_type is DataType.BF16:
            high = np.frombuffer(self.data, "<u2").astype("<u4") << 16
            return high.view("<f4").reshape(self.spec.shape)
        assert self.spec.data_type is not None
        return np.frombuffer(self.data, _NUMPY_NAMES[self.spec.data_type]).reshape(self.spec.shape)

    def outgoing(self, kind: PayloadKind) -> Outgoing:
        """Declare the tensor as a payload of `kind`, ready to be sent."""
        return Outgoing(Payload(kind, byte_length(self.spec), tensor=self.spec), self.data)


def check_tensor(argument: str, value: object) -> None:
    """Check that an argument is a tensor.

    Raises:
        RequestError: it is something else.
    """
    check_kind(argument, value, Tensor, "a Tensor", _FROM_NUMPY)


def byte_length(spec: TensorSpec) -> int:
    """Bytes of a tensor: its elements times their size."""
    return math.prod(spec.shape) * (spec.data_type.byte_size if spec.data_type else 0)
