"""Noise levels: how far to denoise in each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from vtryon.schedules import flow_shift, simple_sigmas
from vtryon.types import SigmaSchedule
from vtryon_services.engine.geometry import Defaults, Geometry
from vtryon_services.engine.numerics import DEFAULTS, Resolved
from vtryon_services.engine.plan import TOKEN_PIXELS


class Scheduled:
    """A checkpoint's schedules, for plans."""

    _scheduler: FlowMatchEulerDiscreteScheduler
    geometry: Geometry

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        return self.geometry.defaults.get(numerics.profile) or DEFAULTS[numerics.profile]

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Give the noise levels of a request."""
        tokens = (width // TOKEN_PIXELS) * (height // TOKEN_PIXELS)
        return shorten(sigmas_for(self._scheduler, numerics, steps, tokens), strength)


def mu_of(scheduler: FlowMatchEulerDiscreteScheduler, target_tokens: int) -> float:
    """Exponent of the dynamic shift: linear in the target's tokens.

    Source: `calculate_shift` of diffusers' Qwen-Image pipelines, with the checkpoint's numbers.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return float(config.base_shift + slope * (target_tokens - config.base_image_seq_len))


def sigmas_for(
    scheduler: FlowMatchEulerDiscreteScheduler, numerics: Resolved, steps: int, target_tokens: int
) -> tuple[float, ...]:
    """Give steps + 1 falling noise levels, the last one 0."""
    shift = numerics.shift or 1.0
    match numerics.schedule:
        case SigmaSchedule.DYNAMIC:
            return _dynamic(scheduler, steps, target_tokens)
        case SigmaSchedule.SIMPLE:
            picked = simple_sigmas(steps, shift)
        case SigmaSchedule.LINEAR:
            picked = tuple(flow_shift(float(t), shift) for t in np.linspace(1, 1 / steps, steps))
    return (*picked, 0.0)


def _dynamic(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, target_tokens: int
) -> tuple[float, ...]:
    if steps == 1:  # from pure noise to the end; stretching to the terminal would divide 0 by 0
        return 1.0, 0.0
    mu = mu_of(scheduler, target_tokens) if scheduler.config.use_dynamic_shifting else None
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    return tuple(scheduler.sigmas.tolist())


def shorten(sigmas: Sequence[float], strength: float) -> tuple[float, ...]:
    """Keep the last `strength` of the steps, a part of a step as a whole one.

    Source: `get_timesteps` of `QwenImageImg2ImgPipeline` in diffusers.
    """
    steps = len(sigmas) - 1
    return tuple(sigmas[int(max(steps - steps * strength, 0)) :])
