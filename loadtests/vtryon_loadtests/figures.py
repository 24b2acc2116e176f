"""Figures that the programs have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the measured value that `percent` of the values don't exceed; NaN where there are none.

    Source: method "lower" of numpy: nothing is interpolated.
    """
    return float(np.percentile(values, percent, method="lower")) if len(values) else float("nan")
