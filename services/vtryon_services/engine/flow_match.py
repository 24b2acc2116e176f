"""The dynamic schedule of a checkpoint, without torch: a Triton client computes it as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

_RHO = 7.0  # of the schedule of Karras et al. 2022


@dataclass(frozen=True, slots=True)
class FlowMatchSchedule:
    """The noise levels of `scheduler/scheduler_config.json`.

    Source: `FlowMatchEulerDiscreteScheduler.set_timesteps` of diffusers, with its fields and
    defaults; tests compare the levels with it, bit by bit.
    """

    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float | None = 0.5
    max_shift: float | None = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    time_shift_type: str = "exponential"

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ValueError: several spacings are chosen, or an unknown shift.
        """
        if self.use_karras_sigmas + self.use_exponential_sigmas + self.use_beta_sigmas > 1:
            raise ValueError(
                "only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas "
                "can be set"
            )
        if self.time_shift_type not in {"exponential", "linear"}:
            raise ValueError("time_shift_type is neither 'exponential' nor 'linear'")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the fields of a scheduler's configuration that change noise levels.

        Raises:
            ValueError: the choices are invalid.
        """
        names = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in names})

    def mu(self, target_tokens: int) -> float:
        """Exponent of the dynamic shift: linear in the target's tokens.

        Source: `calculate_shift` of diffusers' Qwen-Image pipelines, with the checkpoint's numbers.
        """
        assert self.base_shift is not None
        assert self.max_shift is not None
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        return float(self.base_shift + slope * (target_tokens - self.base_image_seq_len))

    def sigmas(self, steps: int, target_tokens: int) -> tuple[float, ...]:
        """Return steps + 1 falling noise levels, the last one 0."""
        if steps == 1:  # from pure noise to the end; stretching to the terminal would divide 0 by 0
            return 1.0, 0.0
        levels = np.linspace(1, 1 / steps, steps).astype(np.float32)
        levels = self._stretched(self._shifted(levels, target_tokens))
        return (*self._spaced(levels).astype(np.float32).tolist(), 0.0)

    def _shifted(self, levels: np.ndarray, target_tokens: int) -> np.ndarray:
        if not self.use_dynamic_shifting:
            return self.shift * levels / (1 + (self.shift - 1) * levels)
        mu = self.mu(target_tokens)
        factor = math.exp(mu) if self.time_shift_type == "exponential" else mu
        return factor / (factor + (1 / levels - 1) ** 1.0)

    def _stretched(self, levels: np.ndarray) -> np.ndarray:
        if not self.shift_terminal:
            return levels
        rest = 1 - levels
        return 1 - (rest / (rest[-1] / (1 - self.shift_terminal)))

    def _spaced(self, levels: np.ndarray) -> np.ndarray:
        """Replace the levels between the first and the last by another spacing."""
        first, last, steps = float(levels[0]), float(levels[-1]), len(levels)
        ramp = np.linspace(0, 1, steps)
        if self.use_karras_sigmas:
            low, high = last ** (1 / _RHO), first ** (1 / _RHO)
            return (high + ramp * (low - high)) ** _RHO
        if self.use_exponential_sigmas:
            return np.exp(np.linspace(math.log(first), math.log(last), steps))
        if self.use_beta_sigmas:
            from scipy.stats import beta

            return np.array([last + beta.ppf(one, 0.6, 0.6) * (first - last) for one in 1 - ramp])
        return levels
