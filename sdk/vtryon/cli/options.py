"""Try-on options shared by several commands; each command lists the ones that it accepts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vtryon.errors import RequestError
from vtryon.files import strict
from vtryon.options import DEFAULT_PROMPT
from vtryon.sampling_options import SAMPLING_OPTIONS
from vtryon.types import (
    GuidanceNorm,
    Lora,
    PreviewPolicy,
    Priority,
    Profile,
    ResizeFilter,
    RopeLayout,
    SigmaSchedule,
)

C = TypeVar("C", bound=Callable[..., None])

HELP: dict[str, tuple[Any, str]] = {
    "prompt": (str, f'What to do with the pictures. Default: "{DEFAULT_PROMPT}".'),
    "negative_prompt": (
        str,
        "Negative prompt: what to avoid; with --true-cfg-scale above 1 it turns guidance on.",
    ),
    **{
        name: (Any if kind is tuple else kind, option.help)
        for name, (kind, option) in SAMPLING_OPTIONS.items()
    },
    "width": (int, "Width of the result in pixels; a multiple of 16. Default: the person's."),
    "height": (int, "Height of the result in pixels; a multiple of 16. Default: the person's."),
    "profile": (Profile, "Named set of numerics."),
    "schedule": (SigmaSchedule, "Schedule of the noise levels. Default: the profile's."),
    "shift": (float, "Shift of the noise levels, 0.01 to 100. Default: the profile's."),
    "guidance_norm": (GuidanceNorm, "Norm limit of guided predictions. Default: the profile's."),
    "resize": (ResizeFilter, "Filter for resizing pictures. Default: the profile's."),
    "rope_layout": (RopeLayout, "Layout of rotary positions. Default: the profile's."),
    "priority": (Priority, "Scheduling priority. Default: interactive."),
    "loras": (
        Lora,
        "LoRA of the server that applies; strength -100 to 100, default 1. Repeatable, up to 8.",
    ),
    "quality": (int, "Quality of a JPEG or WebP result, 1 to 100."),
    "preview_every": (int, "With --previews: one after every n-th step, 1 to 200, and the last."),
    "preview_max_pixels": (int, "With --previews: maximum pixels of one, 1 to 1048576."),
}
SAMPLING = (
    *SAMPLING_OPTIONS,
    "width",
    "height",
    "profile",
    "schedule",
    "shift",
    "guidance_norm",
    "rope_layout",
    "priority",
    "loras",
)
ALL = ("prompt", "negative_prompt", *SAMPLING, "resize", "quality")
PREVIEWS = ("preview_every", "preview_max_pixels")


def with_options(*names: str) -> Callable[[C], C]:
    """Add options to a command, which receives the ones that are set as a dictionary.

    The command's parameter `options` receives it; its position is that of the options in `--help`.
    """

    def decorate(command: C) -> C:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            own = {name: values.pop(name) for name in names}
            command(**values, options={name: one for name, one in own.items() if _is_set(one)})

        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())
        position = list(signature.parameters).index("options")
        parameters[position : position + 1] = map(_parameter, names)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run  # type: ignore[return-value]

    return decorate


def preview_policy(folder: Path | None, given: MutableMapping[str, Any]) -> PreviewPolicy | None:
    """Remove the preview options from the set ones; return None if no previews are wanted.

    Raises:
        RequestError: preview options are set without a folder for previews.
    """
    own = {name: given.pop(name) for name in PREVIEWS if name in given}
    if folder is not None:
        return PreviewPolicy(own.get("preview_every", 1), own.get("preview_max_pixels", 0))
    if own:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in own)
        raise RequestError(f"{names}: needs --previews with a folder")
    return None


def _is_set(value: Any) -> bool:
    return value is not None and value != []


def _parameter(name: str) -> inspect.Parameter:
    kind, text = HELP[name]
    option = typer.Option(help=text, min=1 if name in PREVIEWS else None)
    if kind is Any:
        option = typer.Option(help=text, parser=_numbers, metavar="NUMBERS")
    elif kind is Lora:
        option = typer.Option("--lora", help=text, parser=strict.lora_of, metavar="NAME[=STRENGTH]")
        kind = list[Lora]
    wanted = kind if kind is Any else kind | None
    annotation = Annotated[wanted, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation
    )


def _numbers(text: str) -> tuple[float, ...]:
    found: tuple[float, ...] = strict.from_cell("sigmas", text.replace(",", " "))
    return found
