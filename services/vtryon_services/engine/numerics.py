"""Profiles, resolved: every choice that a request leaves open, filled in."""

from __future__ import annotations

from dataclasses import dataclass

from vtryon.errors import Reason, RequestError
from vtryon.types import GuidanceNorm, Numerics, Profile, ResizeFilter, RopeLayout, SigmaSchedule


@dataclass(frozen=True, slots=True)
class Resolved:
    """Numerics with nothing left open."""

    profile: Profile
    schedule: SigmaSchedule
    shift: float | None
    guidance_norm: GuidanceNorm
    resize: ResizeFilter
    rope_layout: RopeLayout

    def to_wire(self) -> Numerics:
        """Convert to the `numerics` of `accepted`."""
        return Numerics(
            self.profile,
            self.schedule,
            self.shift,
            self.guidance_norm,
            self.resize,
            self.rope_layout,
        )


# Source: the table of profiles in docs/internals/numerics.md, from diffusers 0.42 and from what
# ComfyUI's nodes are documented to do.
_PROFILES = {
    Profile.DIFFUSERS: Resolved(
        Profile.DIFFUSERS,
        SigmaSchedule.DYNAMIC,
        None,
        GuidanceNorm.VELOCITY,
        ResizeFilter.LANCZOS,
        RopeLayout.DIFFUSERS,
    ),
    Profile.COMFY: Resolved(
        Profile.COMFY,
        SigmaSchedule.SIMPLE,
        3.0,
        GuidanceNorm.X0,
        ResizeFilter.AREA,
        RopeLayout.COMFY,
    ),
    Profile.LIGHTNING: Resolved(
        Profile.LIGHTNING,
        SigmaSchedule.LINEAR,
        3.0,
        GuidanceNorm.NONE,
        ResizeFilter.LANCZOS,
        RopeLayout.DIFFUSERS,
    ),
}


def resolve(wanted: Numerics | None) -> Resolved:
    """Fill in the choices that a request leaves open.

    Raises:
        RequestError: the choices are incompatible, or the shift is out of range.
    """
    wanted = wanted or Numerics()
    base = _PROFILES[wanted.profile or Profile.DIFFUSERS]
    schedule = wanted.schedule or base.schedule
    return Resolved(
        base.profile,
        schedule,
        _shift(schedule, wanted.shift, base.shift),
        wanted.guidance_norm or base.guidance_norm,
        wanted.resize or base.resize,
        wanted.rope_layout or base.rope_layout,
    )


def _shift(schedule: SigmaSchedule, wanted: float | None, base: float | None) -> float | None:
    if schedule is SigmaSchedule.DYNAMIC:
        if wanted is not None:
            raise RequestError(
                "the dynamic schedule takes its shift from the checkpoint; "
                "leave `shift` unset, or choose the schedule simple or linear",
                reason=Reason.NUMERICS_UNSUPPORTED,
            )
        return None
    shift = wanted if wanted is not None else base or 3.0
    if not 0.01 <= shift <= 100:
        raise RequestError(f"numerics.shift is {shift}; it takes 0.01 to 100")
    return shift
