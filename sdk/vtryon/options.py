"""Options of a try-on: from keyword arguments to messages, for every interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from vtryon.arguments import argument_error, check_kind, choice, sequence
from vtryon.errors import RequestError
from vtryon.sampling_options import SamplingArguments
from vtryon.stages import image_payloads
from vtryon.types import (
    ImageFormat,
    Lora,
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


class TryOnArguments(SamplingArguments, total=False):
    """Keyword arguments that set the options of a try-on; the server chooses all others.

    Attributes:
        negative_prompt: text to avoid. Together with `true_cfg_scale` above 1 it turns guidance on,
            at twice the cost.
        width: of the result in pixels, a multiple of 16; requires `height`. Default: the size at
            which the person is encoded.
        height: of the result in pixels; requires `width`.
        profile: a named set of numerics: "diffusers", "comfy" or "lightning".
        numerics: a profile with overrides; excludes `profile`.
        previews: True, the default, for a preview after each step; a policy; or False.
        priority: INTERACTIVE by default.
        format: of the result; PNG by default.
        quality: of a JPEG or WebP, 1 to 100.
        loras: LoRAs of the sampler's setting `loras` that apply, each with a strength; up to 8.
    """

    negative_prompt: str | None
    width: int | None
    height: int | None
    profile: Profile | str | None
    numerics: Numerics | None
    previews: PreviewPolicy | bool
    priority: Priority | str | None
    format: ImageFormat | str | None
    quality: int | None
    loras: Sequence[Lora]


def make_options(
    options: TryOnOptions | None = None,
    *,
    prompt: str = DEFAULT_PROMPT,
    **arguments: Unpack[TryOnArguments],
) -> TryOnOptions:
    """Build the options of a try-on from keyword arguments, or return `options` unchanged.

    Values are checked against their fields by `request_message`, with the message they belong to.

    Raises:
        RequestError: an argument can't be converted, or excludes `options`; the violation names it.
        TypeError: there is no argument of that name.
    """
    known = TryOnArguments.__optional_keys__
    if unknown := sorted(arguments.keys() - known):
        names = ", ".join(sorted(known | {"prompt"}))
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; the options are {names}")
    if options is not None:
        check_kind("options", options, TryOnOptions, "a TryOnOptions")
        for name in ["prompt"] * (prompt != DEFAULT_PROMPT) + [*arguments]:
            raise argument_error(name, "excludes `options`; set it in the TryOnOptions")
        return options
    fields: dict[str, Any] = dict(arguments)
    numbers = sequence("sigmas", fields.pop("sigmas", ()), "numbers")
    return TryOnOptions(
        prompt=prompt,
        numerics=_numerics(fields.pop("profile", None), fields.pop("numerics", None)),
        sigmas=tuple(_number("sigmas", one) for one in numbers),
        previews=_previews(fields.pop("previews", True)),
        priority=choice("priority", Priority, fields.pop("priority", None)),
        format=choice("format", ImageFormat, fields.pop("format", None)),
        loras=_loras(fields.pop("loras", ())),
        **fields,
    )


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


def _loras(wanted: Sequence[Lora]) -> tuple[Lora, ...]:
    loras = sequence("loras", wanted, "Lora")
    for lora in loras:
        check_kind("loras", lora, Lora, "Lora items", 'such as Lora("silk", 0.7)')
    return loras


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
