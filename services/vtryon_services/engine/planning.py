"""From a sampling request to a plan, with all defaults filled in."""

from __future__ import annotations

from typing import Protocol

from vtryon.errors import RequestError
from vtryon.seeds import draw_seed
from vtryon.types import SampleStart
from vtryon_services.engine.defaults import Defaults
from vtryon_services.engine.numerics import Resolved, resolve
from vtryon_services.engine.plan import SamplingPlan


class Schedules(Protocol):
    """The schedules of a checkpoint."""

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        ...

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Noise levels of a request."""
        ...


def plan_of(start: SampleStart, schedules: Schedules) -> SamplingPlan:
    """Fill in the defaults of a request whose fields are in range.

    Raises:
        RequestError: the numerics are incompatible, or the resume point is after the last step.
    """
    numerics = resolve(start.numerics)
    defaults = schedules.defaults(numerics)
    strength = start.strength or 1.0
    if start.sigmas:
        sigmas = (*start.sigmas, 0.0)
    else:
        steps = start.steps or defaults.steps
        sigmas = schedules.sigmas(numerics, steps, start.width, start.height, strength)
    done = start.resume.step if start.resume else 0
    if start.resume and not 0 < done < len(sigmas) - 1:
        raise RequestError(f"resume.step is {done}; it takes 1 to {len(sigmas) - 2}")
    return SamplingPlan(
        numerics=numerics,
        width=start.width,
        height=start.height,
        sigmas=sigmas,
        seed=draw_seed() if start.seed is None else start.seed,
        guidance=defaults.guidance(start),
        first_step=done,
    )
