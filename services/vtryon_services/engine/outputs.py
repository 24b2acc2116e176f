"""What a model computes is finite, or an error where it was computed."""

from __future__ import annotations

import torch

from vtryon.errors import StageError


def check_output(values: torch.Tensor, model: str) -> None:
    """Look at what a model has computed.

    Raises:
        StageError: it holds NaN or an infinity.
    """
    if not bool(values.isfinite().all()):
        raise not_finite(model)


def not_finite(model: str, when: str = "") -> StageError:
    """Make the error for a model whose result is not finite, and say what may be done."""
    return StageError(
        f"the {model} computed NaN or an infinity{when}: its weights don't suit the element type, "
        "or are damaged (scales that were dropped, a bad merge). Serve it with --dtype bf16 or "
        "fp32, or take other weights"
    )
