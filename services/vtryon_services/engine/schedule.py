"""Noise levels: how far to denoise in each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtryon.schedules import flow_shift, simple_sigmas
from vtryon.types import SigmaSchedule
from vtryon_services.engine.defaults import Defaults
from vtryon_services.engine.flow_match import FlowMatchSchedule
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.numerics import Resolved
from vtryon_services.engine.plan import TOKEN_PIXELS


class Scheduled:
    """A checkpoint's schedules, for plans."""

    _schedule: FlowMatchSchedule
    geometry: Geometry

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        return self.geometry.defaults_of(numerics.profile)

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Give the noise levels of a request."""
        tokens = (width // TOKEN_PIXELS) * (height // TOKEN_PIXELS)
        return shorten(sigmas_for(self._schedule, numerics, steps, tokens), strength)


def sigmas_for(
    schedule: FlowMatchSchedule, numerics: Resolved, steps: int, target_tokens: int
) -> tuple[float, ...]:
    """Give steps + 1 falling noise levels, the last one 0."""
    shift = numerics.shift or 1.0
    match numerics.schedule:
        case SigmaSchedule.DYNAMIC:
            return schedule.sigmas(steps, target_tokens)
        case SigmaSchedule.SIMPLE:
            picked = simple_sigmas(steps, shift)
        case SigmaSchedule.LINEAR:
            picked = tuple(flow_shift(float(t), shift) for t in np.linspace(1, 1 / steps, steps))
    return (*picked, 0.0)


def shorten(sigmas: Sequence[float], strength: float) -> tuple[float, ...]:
    """Keep the last `strength` of the steps, a part of a step as a whole one.

    Source: `get_timesteps` of `QwenImageImg2ImgPipeline` in diffusers.
    """
    steps = len(sigmas) - 1
    return tuple(sigmas[int(max(steps - steps * strength, 0)) :])
