"""From a sampling request to a plan, with all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vtryon.errors import RequestError
from vtryon.seeds import draw_seed
from vtryon.types import Profile, SampleStart
from vtryon_services.engine.defaults import Defaults
from vtryon_services.engine.loras.choice import (
    LoraFacts,
    choose_loras,
    distilled_steps,
    lightning_numerics,
)
from vtryon_services.engine.numerics import Resolved, resolve
from vtryon_services.engine.plan import SamplingPlan


class Schedules(Protocol):
    """The schedules of a checkpoint, and the LoRAs beside it.

    Attributes:
        loras: those that requests can choose, by name.
    """

    loras: Mapping[str, LoraFacts]

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
        RequestError: the numerics are incompatible, a LoRA is not there, or the resume point is
            after the last step.
    """
    loras = choose_loras(start.loras, schedules.loras)
    distilled = distilled_steps(loras, schedules.loras)
    numerics = resolve(lightning_numerics(start.numerics) if distilled else start.numerics)
    defaults = schedules.defaults(numerics)
    strength = start.strength or 1.0
    if start.sigmas:
        sigmas = (*start.sigmas, 0.0)
    else:
        steps = start.steps or _default_steps(numerics, distilled, defaults)
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
        loras=loras,
    )


def _default_steps(numerics: Resolved, distilled: int | None, defaults: Defaults) -> int:
    """Return the steps that a distilled LoRA was made for, with its profile; or the default."""
    is_lightning = numerics.profile is Profile.LIGHTNING
    return distilled if distilled and is_lightning else defaults.steps
