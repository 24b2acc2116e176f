"""Figures that the programs have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that `percent` of all don't exceed; NaN where there are none.

    Of fewer than 20 values the 95th percentile is the largest.
    Source: nearest rank, method "inverted_cdf" of numpy: nothing is interpolated.
    """
    if not len(values):
        return float("nan")
    return float(np.percentile(values, percent, method="inverted_cdf"))
