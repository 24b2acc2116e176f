"""Options of a try-on: from keyword arguments to messages, for every interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtryon.arguments import argument_error, check_kind, choice, sequence
from vtryon.errors import RequestError
from vtryon.messages import request_message
from vtryon.stages import image_payloads
from vtryon.types import (
    ImageFormat,
    Numerics,
    PayloadKind,
    PreviewPolicy,
    Priority,
    Profile,
    TryOnOptions,
)
from vtryon.wire.payloads import Outgoing

if TYPE_CHECKING:
    from vtryon.pictures import PictureSource

DEFAULT_PROMPT = "Dress the person in picture 1 in the garment from picture 2"


def make_options(
    *,
    prompt: str = DEFAULT_PROMPT,
    negative_prompt: str | None = None,
    steps: int | None = None,
    true_cfg_scale: float | None = None,
    seed: int | None = None,
    width: int | None = None,
    height: int | None = None,
    profile: Profile | str | None = None,
    numerics: Numerics | None = None,
    strength: float | None = None,
    sigmas: Sequence[float] = (),
    previews: PreviewPolicy | bool = True,
    priority: Priority | str | None = None,
    format: ImageFormat | str | None = None,  # noqa: A002
    quality: int | None = None,
) -> TryOnOptions:
    """Build the options of a try-on; see `vtryon.Client.try_on`.

    Raises:
        RequestError: a value has the wrong type; the violation names the argument.
    """
    options = TryOnOptions(
        prompt=prompt,
        negative_prompt=negative_prompt,
        numerics=_numerics(profile, numerics),
        steps=steps,
        true_cfg_scale=true_cfg_scale,
        seed=seed,
        strength=strength,
        sigmas=tuple(_number("sigmas", one) for one in sequence("sigmas", sigmas, "numbers")),
        width=width,
        height=height,
        previews=_previews(previews),
        priority=choice("priority", Priority, priority),
        format=choice("format", ImageFormat, format),
        quality=quality,
    )
    request_message(options)  # refuses now what could not be sent
    return options


async def outgoing_pictures(
    person: PictureSource, garment: PictureSource | Sequence[PictureSource] | None
) -> list[Outgoing]:
    """Read the pictures of a try-on and declare them, the person first.

    Raises:
        RequestError: one can't be read.
    """
    pictures = [(PayloadKind.PERSON_IMAGE, person, "person")]
    for number, one in enumerate(_several(garment), 1):
        name = "garment" if number == 1 else f"garment {number}"
        pictures.append((PayloadKind.GARMENT_IMAGE, one, name))
    return await image_payloads(pictures)


def _numerics(profile: Profile | str | None, numerics: Numerics | None) -> Numerics | None:
    if profile is None:
        return numerics
    if numerics is not None:
        raise RequestError("give a profile or numerics, not both")
    return Numerics(profile=choice("profile", Profile, profile))


def _previews(wanted: PreviewPolicy | bool) -> PreviewPolicy | None:
    if isinstance(wanted, PreviewPolicy):
        return wanted
    check_kind("previews", wanted, bool, "a PreviewPolicy, True or False")
    return PreviewPolicy() if wanted else None


def _number(argument: str, value: object) -> float:
    """Take a number, also NumPy's; `float` alone would take True and text for numbers."""
    if not isinstance(value, (bool, str, bytes)) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            raise argument_error(argument, "takes numbers, and one is too large") from None
        except (TypeError, ValueError):
            pass
    raise argument_error(argument, f"takes a list of numbers, and one is {type(value).__name__}")


def _several(garment: PictureSource | Sequence[PictureSource] | None) -> list[PictureSource]:
    if garment is None:
        return []
    return list(garment) if isinstance(garment, (list, tuple)) else [garment]  # type: ignore[list-item]
