"""A look at a tensor's bytes for NaN and infinities, in blocks, so that it needs no memory."""

from __future__ import annotations

import numpy as np

from vtryon.errors import Reason, RequestError
from vtryon.tensors import Tensor
from vtryon.types import DataType

_BLOCK = 1 << 18
# Element type: unsigned view, and the bits of the exponent, all set in NaN and infinities.
_EXPONENTS = {
    DataType.FP32: ("<u4", 0x7F800000),
    DataType.FP16: ("<u2", 0x7C00),
    DataType.BF16: ("<u2", 0x7F80),
}


def check_finite(tensor: Tensor, name: str) -> None:
    """Look at every element.

    Raises:
        RequestError: one is NaN or infinite.
    """
    if tensor.spec.data_type not in _EXPONENTS:
        return
    view, exponent = _EXPONENTS[tensor.spec.data_type]
    bits = np.frombuffer(tensor.data, view)
    for first in range(0, len(bits), _BLOCK):
        if ((bits[first : first + _BLOCK] & exponent) == exponent).any():
            raise RequestError(f"{name} hold NaN or an infinity", reason=Reason.TENSOR_NOT_FINITE)
