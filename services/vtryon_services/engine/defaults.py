"""Steps and guidance of a request: its own choices, or the defaults of its profile."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from vtryon.sampling_options import MAX_STEPS, MAX_TRUE_CFG_SCALE, SamplingOptions, guides
from vtryon.types import Profile


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance of a request, decided once; by default it is off.

    Attributes:
        scale: has an effect above 1, with a negative prompt.
        rescale: 0 to 1; see `guidance.rescale`.
    """

    scale: float = 1.0
    rescale: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether it has an effect, with a negative prompt."""
        return guides(self.scale)

    @property
    def options(self) -> SamplingOptions:
        """The options of a request that name this guidance and nothing else."""
        return SamplingOptions(true_cfg_scale=self.scale, guidance_rescale=self.rescale)


UNGUIDED = Guidance()


class Defaults(BaseModel):
    """Defaults of requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, le=MAX_STEPS)
    true_cfg_scale: float = Field(ge=0, le=MAX_TRUE_CFG_SCALE)

    def guidance(self, options: SamplingOptions) -> Guidance:
        """Return the guidance of a request."""
        scale = options.true_cfg_scale
        return Guidance(
            scale=self.true_cfg_scale if scale is None else scale,
            rescale=options.guidance_rescale or 0.0,
        )


# Source: the table of profiles in docs/internals/numerics.md.
DEFAULTS = {
    Profile.DIFFUSERS: Defaults(steps=40, true_cfg_scale=4.0),
    Profile.COMFY: Defaults(steps=20, true_cfg_scale=2.5),
    Profile.LIGHTNING: Defaults(steps=4, true_cfg_scale=1.0),
}
