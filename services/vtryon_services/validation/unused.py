"""Options of a request that have no effect, reported back to the client."""

from __future__ import annotations

from collections.abc import Iterator

from vtryon.events import UnusedOption
from vtryon.sampling_options import guides
from vtryon.types import GuidanceNorm, SampleStart, TryOnOptions


def unused_options(
    given: TryOnOptions | SampleStart,
    scale: float | None,
    *,
    negative: bool,
    norm: GuidanceNorm | None = None,
    can_preview: bool = True,
) -> tuple[UnusedOption, ...]:
    """List the options of a request that do not affect its picture.

    Args:
        given: the options as sent by the client.
        scale: the effective guidance scale; None if the sampler has yet to choose it.
        negative: whether there is a negative prompt.
        norm: the effective guidance norm; None if the sampler has yet to report it.
        can_preview: whether the checkpoint has a preview map; True if the sampler has yet to
            report it.
    """
    return (
        *_of_guidance(given, scale, negative=negative),
        *_of_guided(given, norm, guided=negative and (scale is None or guides(scale))),
        *_of_schedule(given),
        *_of_previews(given, can_preview=can_preview),
        *_of_loras(given),
    )


def unused_of_try_on(options: TryOnOptions) -> tuple[UnusedOption, ...]:
    """List the options of a try-on that have no effect whatever the sampler's defaults are."""
    negative = options.negative_prompt is not None
    return unused_options(options, options.true_cfg_scale, negative=negative)


def _of_guidance(
    given: TryOnOptions | SampleStart, scale: float | None, *, negative: bool
) -> Iterator[UnusedOption]:
    """Guidance needs a scale above 1 and a negative prompt; a scale of 1 disables it."""
    own = given.true_cfg_scale
    if own is not None and guides(own) and not negative:
        yield UnusedOption(
            "true_cfg_scale", "guidance needs a negative_prompt as well, and there is none"
        )
    elif own is not None and own < 1 and not negative:
        yield UnusedOption(
            "true_cfg_scale",
            f"guidance needs a scale above 1 and a negative_prompt; {own:g} is the same as 1",
        )
    if negative and scale is not None and not guides(scale):
        whose = "it is" if own is not None else "by default it is"
        yield UnusedOption(
            "negative_prompt",
            f"guidance needs a true_cfg_scale above 1 as well, and {whose} {scale:g}",
        )


def _of_guided(
    given: TryOnOptions | SampleStart, norm: GuidanceNorm | None, *, guided: bool
) -> Iterator[UnusedOption]:
    """List options of guided predictions, where there are none or their norm is set anyway."""
    off = "guidance is off: it needs a true_cfg_scale above 1 and a negative_prompt"
    if not guided and given.numerics is not None and given.numerics.guidance_norm is not None:
        yield UnusedOption("numerics.guidance_norm", off)
    if not given.guidance_rescale:
        return
    if not guided:
        yield UnusedOption("guidance_rescale", off)
    elif norm is GuidanceNorm.VELOCITY:
        yield UnusedOption("guidance_rescale", "guidance_norm velocity sets every token's norm")


def _of_schedule(given: TryOnOptions | SampleStart) -> Iterator[UnusedOption]:
    if not given.sigmas or given.numerics is None:
        return
    for name in ("schedule", "shift"):
        if getattr(given.numerics, name) is not None:
            yield UnusedOption(f"numerics.{name}", "sigmas are given in place of a schedule")


def _of_loras(given: TryOnOptions | SampleStart) -> Iterator[UnusedOption]:
    if names := ", ".join(lora.name for lora in given.loras if lora.strength == 0):
        yield UnusedOption("loras", f"the strength of {names} is 0")


def _of_previews(given: TryOnOptions | SampleStart, *, can_preview: bool) -> Iterator[UnusedOption]:
    previews = given.previews
    if previews is not None and previews.every_steps and not can_preview:
        yield UnusedOption(
            "previews", "the checkpoint's geometry.json has no preview map, so there are none"
        )
    if previews is not None and previews.max_pixels and not previews.every_steps:
        yield UnusedOption("previews.max_pixels", "previews.every_steps is 0, so there are none")
