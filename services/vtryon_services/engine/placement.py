"""Where and in which element type a stage computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtryon.errors import SettingsError
from vtryon_services.engine.dtypes import DtypeName

DTYPES: dict[DtypeName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, and the element type of the weights.

    Attributes:
        keep_fp8: linear layers stored in fp8 stay so in memory, and are dequantised one by one.
    """

    device: torch.device
    dtype: torch.dtype
    keep_fp8: bool = True

    @classmethod
    def of(cls, device: str, dtype: DtypeName, *, keep_fp8: bool = True) -> Placement:
        """Check that the device is there.

        Raises:
            SettingsError: it is not, or is no device.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(f"the device {device!r} can't be used: {reason}") from error
        return cls(torch.device(device), DTYPES[dtype], keep_fp8)
