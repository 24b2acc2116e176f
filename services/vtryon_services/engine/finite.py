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
    if tensor.spec.data_type in _EXPONENTS and not _all_finite(tensor):
        raise RequestError(f"{name} hold NaN or an infinity", reason=Reason.TENSOR_NOT_FINITE)


def _all_finite(tensor: Tensor) -> bool:
    if tensor.spec.data_type is DataType.FP32 and _sum_is_finite(tensor):
        return True
    view, exponent = _EXPONENTS[tensor.spec.data_type or DataType.FP32]
    bits = np.frombuffer(tensor.data, view)
    blocks = (bits[first : first + _BLOCK] for first in range(0, len(bits), _BLOCK))
    return not any(((block & exponent) == exponent).any() for block in blocks)


def _sum_is_finite(tensor: Tensor) -> bool:
    """A sum with NaN or an infinity in it is never finite, and it is as fast as memory."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.frombuffer(tensor.data, "<f4").sum()))
