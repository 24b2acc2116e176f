"""ComfyUI's noise levels: computed alike by the import of a graph and by the engine.

The formulas are those of `NUMERICS`, "Sigmas": the flow shift of "Scaling Rectified Flow
Transformers" (Esser et al. 2024, eq. 23), and ComfyUI's scheduler `simple`.
"""

from __future__ import annotations

_TABLE_SIZE = 1000
_FULL_DENOISE = 0.9999  # ComfyUI treats a denoise above this as 1


def flow_shift(t: float, shift: float) -> float:
    """Move a noise level towards 1: s·t / (1 + (s − 1)·t), which is exactly 1 at t = 1."""
    return shift * t / ((1 - t) + shift * t)


def simple_sigmas(steps: int, shift: float, first: int = 0) -> tuple[float, ...]:
    """Return the falling noise levels of the scheduler `simple`, without the final 0.

    The stride is a floating-point quotient, as in ComfyUI: `k * 1000 // steps` picks another
    table entry for 38, 76, 122, 152, 174, 186 and 198 steps. Above 1000 steps, levels repeat.

    Args:
        steps: of the whole schedule.
        shift: of the model's sampling.
        first: the step to begin with.
    """
    stride = _TABLE_SIZE / steps
    indices = (_TABLE_SIZE - 1 - int(k * stride) for k in range(first, steps))
    return tuple(flow_shift((index + 1) / _TABLE_SIZE, shift) for index in indices)


def denoised_sigmas(steps: int, denoise: float, shift: float) -> tuple[float, ...]:
    """Return the noise levels that ComfyUI's KSampler runs with a `denoise` of 1 or less.

    It makes a schedule of `int(steps / denoise)` steps and runs the last `steps` of them.
    """
    total = steps if denoise > _FULL_DENOISE else int(steps / denoise)
    return simple_sigmas(total, shift, total - steps)
