"""Finiteness checks of model outputs, at the place of their computation."""

from __future__ import annotations

import torch

from vtryon.errors import StageError


def check_output(values: torch.Tensor, model: str) -> None:
    """Check the output of a model.

    Raises:
        StageError: it has NaN or infinity.
    """
    if not bool(values.isfinite().all()):
        raise not_finite(model)


def not_finite(model: str, when: str = "") -> StageError:
    """Build the error for a model with non-finite output, with possible remedies."""
    return StageError(
        f"the {model} computed NaN or an infinity{when}: its weights don't suit the element type, "
        "or are damaged (scales that were dropped, a bad merge). Serve it with --dtype bf16 or "
        "fp32, or take other weights"
    )
