"""The table of sampling options: each field's type, range and help, declared once.

`vtryon.types.SampleStart` and `TryOnOptions` have these fields. Command-line options, files of
options, REST's bodies, range checks and Triton's parameters are made from `SAMPLING_OPTIONS`; tests
compare the protobuf messages, Kafka's schemas and `SamplingArguments` with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from vtryon.messages import ProtoType
from vtryon.seeds import MAX_SEED

MAX_STEPS = 200
MAX_TRUE_CFG_SCALE = 30.0


@dataclass(frozen=True, slots=True)
class Option:
    """Help and range of an option.

    Attributes:
        help: meaning and unit, for the command line and for documents.
        at_least: smallest value.
        above: values are larger than this; instead of `at_least`.
        at_most: largest value.
        most_items: maximum length of a list, whose items have the range.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    most_items: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedOptions(ProtoType):
    """The sampling options whose values `Accepted` reports; in a request, None: default."""

    steps: Annotated[
        int | None,
        Option(f"Denoise steps, 1 to {MAX_STEPS}.", at_least=1, at_most=MAX_STEPS),
    ] = None
    true_cfg_scale: Annotated[
        float | None,
        Option(
            "Guidance scale, 0 to 30; above 1 and with a negative prompt it turns guidance on.",
            at_least=0,
            at_most=MAX_TRUE_CFG_SCALE,
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option("Equal seeds give equal results.", at_least=0, at_most=MAX_SEED),
    ] = None


@dataclass(frozen=True, slots=True)
class SamplingOptions(ReportedOptions):
    """Options of the sampler; None, or no sigmas: the server chooses."""

    guidance_rescale: Annotated[
        float | None,
        Option(
            "Share, 0 to 1, by which the standard deviation of guided predictions is brought back "
            "to that of unguided ones; for a guidance norm of x0 or none.",
            at_least=0,
            at_most=1,
        ),
    ] = None
    strength: Annotated[
        float | None,
        Option(
            "Share of the schedule to run, above 0 to 1; below 1 starts from the noised person.",
            above=0,
            at_most=1,
        ),
    ] = None
    sigmas: Annotated[
        tuple[float, ...],
        Option(
            "Noise levels in place of a schedule, non-increasing: '1.0 0.6 0.3'; a first level "
            "below 1 starts from the noised person.",
            above=0,
            at_most=1,
            most_items=MAX_STEPS,
        ),
    ] = ()

    @property
    def unguided(self) -> bool:
        """Whether the scale is set to a value without guidance."""
        return self.true_cfg_scale is not None and not guides(self.true_cfg_scale)


def guides(scale: float) -> bool:
    """Return whether a guidance scale has an effect, with a negative prompt."""
    return scale > 1


class SamplingArguments(TypedDict, total=False):
    """The sampling options as keyword arguments."""

    steps: int | None
    true_cfg_scale: float | None
    seed: int | None
    guidance_rescale: float | None
    strength: float | None
    sigmas: Sequence[float]


def _table() -> dict[str, tuple[type, Option]]:
    hints = get_type_hints(SamplingOptions, include_extras=True)
    table = {}
    for field in fields(SamplingOptions):
        hint, option = get_args(hints[field.name])
        table[field.name] = (tuple if hint == tuple[float, ...] else get_args(hint)[0], option)
    return table


# By name: int, float, or tuple for a list of numbers; and the range.
SAMPLING_OPTIONS: Mapping[str, tuple[type, Option]] = _table()


def sampling_fields(source: object) -> dict[str, Any]:
    """Return the sampling options of an object that has them as attributes, by name."""
    return {name: getattr(source, name) for name in SAMPLING_OPTIONS}


def reported_fields(source: ReportedOptions) -> dict[str, Any]:
    """Return the options that `Accepted` reports, by name."""
    return {field.name: getattr(source, field.name) for field in fields(ReportedOptions)}
