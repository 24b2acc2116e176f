"""The ranges of request fields, checked in one place for every interface."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from vtryon.errors import RequestError, Violation
from vtryon.sampling_options import SAMPLING_OPTIONS, Option
from vtryon.types import (
    MAX_LORA_STRENGTH,
    MAX_LORAS,
    MAX_PROMPT_CHARACTERS,
    ImageFormat,
    TryOnOptions,
)
from vtryon.wire.status import MAX_VIOLATIONS

GOOD_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LABELS, _LABEL_KEY, _LABEL_VALUE = 16, 64, 256


class _Ranges(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class PreviewRanges(_Ranges):
    """Of a PreviewPolicy."""

    every_steps: int = Field(ge=0, le=200)
    max_pixels: int = Field(ge=0, le=1024 * 1024)


def _field(kind: type, option: Option) -> Any:
    """Build the field of a sampling option for `create_model`: its type, default and range."""
    own = {"ge": option.at_least, "gt": option.above, "le": option.at_most}
    limits: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    if kind is int:
        return int | None, Field(default=None, **limits)
    number = Annotated[float, Field(allow_inf_nan=False, **limits)]
    if kind is float:
        return number | None, None
    return tuple[number, ...], Field(default=(), max_length=option.most_items)


_SAMPLING: dict[str, Any] = {
    name: _field(kind, option) for name, (kind, option) in SAMPLING_OPTIONS.items()
}
_SamplingFields: Any = create_model("_SamplingFields", __base__=_Ranges, **_SAMPLING)


class SamplingRanges(_SamplingFields):  # type: ignore[misc]
    """Ranges of the sampling options, and those that exclude each other."""

    @field_validator("sigmas")
    @classmethod
    def _falling(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if any(after > before for before, after in itertools.pairwise(sigmas)):
            raise ValueError("noise levels must not rise from one to the next")
        return sigmas

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        if self.sigmas and self.steps not in {None, len(self.sigmas)}:
            raise ValueError(f"steps is {self.steps}, but there are {len(self.sigmas)} sigmas")
        if self.sigmas and self.strength is not None:
            raise ValueError("strength shortens a schedule; sigmas are given as they are")
        return self


class LoraRange(_Ranges):
    """Of a LoRA of a request."""

    name: str = Field(min_length=1, max_length=128)
    strength: float | None = Field(
        default=None, ge=-MAX_LORA_STRENGTH, le=MAX_LORA_STRENGTH, allow_inf_nan=False
    )


class LoraRanges(_Ranges):
    """Of the LoRAs of a request."""

    loras: tuple[LoraRange, ...] = Field(default=(), max_length=MAX_LORAS)

    @field_validator("loras")
    @classmethod
    def _each_once(cls, loras: tuple[LoraRange, ...]) -> tuple[LoraRange, ...]:
        if len({lora.name for lora in loras}) < len(loras):
            raise ValueError("a LoRA is there twice; add up its strengths")
        return loras


class PreviewsRange(_Ranges):
    """Of whether there are previews."""

    previews: PreviewRanges | None


class SizeRanges(_Ranges):
    """Ranges of a target's size, if it is set."""

    width: int = Field(ge=16, multiple_of=16)
    height: int = Field(ge=16, multiple_of=16)


class ResumeRanges(_Ranges):
    """Of how a SampleStart provides for another attempt."""

    resume_every: int = Field(ge=0, le=200)


class PromptRanges(_Ranges):
    """Ranges of the prompts."""

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS)
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARACTERS)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _no_nul(cls, text: str | None) -> str | None:
        if text is not None and "\0" in text:
            raise ValueError("a NUL character is not text")
        return text


class EncodingFields(_Ranges):
    """How a picture is to be encoded, each by itself."""

    format: ImageFormat | None = None
    quality: int | None = Field(default=None, ge=1, le=100)


class EncodingRanges(EncodingFields):
    """Of how a picture is to be encoded."""

    @model_validator(mode="after")
    def _encoding_agrees(self) -> Self:
        if self.quality is not None and self.format in {None, ImageFormat.PNG}:
            raise ValueError("quality is for JPEG and WebP; a PNG has none")
        return self


def check_ranges(value: object, *ranges: type[_Ranges]) -> None:
    """Check a start message, and report everything that does not hold at once.

    Raises:
        RequestError: with a violation per field; a text's content is never repeated.
    """
    violations: list[Violation] = []
    for kind in ranges:
        try:
            kind.model_validate(value)
        except ValidationError as error:
            violations += [violation_of(dict(problem)) for problem in error.errors()]
    if violations:
        shown = violations[:MAX_VIOLATIONS]
        listed = "; ".join(f"{item.field}: {item.description}" for item in shown)
        if len(violations) > len(shown):
            listed = f"{len(violations)} fields are invalid, the first: {listed}"
        raise RequestError(listed, violations=tuple(shown))


def check_options(options: TryOnOptions) -> None:
    """Check everything of a try-on but its pictures.

    Raises:
        RequestError: with a violation per field.
    """
    check_ranges(options, PromptRanges, SamplingRanges, LoraRanges, PreviewsRange, EncodingRanges)
    if (options.width is None) != (options.height is None):
        raise RequestError("width and height go together; give both or neither")
    if options.width is not None:
        check_ranges(options, SizeRanges)


def check_request_id(text: str) -> None:
    """Check a request id from a caller.

    Raises:
        RequestError: it is invalid.
    """
    if not GOOD_REQUEST_ID.fullmatch(text):
        raise field_error("request_id", "takes 1 to 128 printable characters without spaces")


def check_labels(labels: Mapping[str, str]) -> None:
    """Check the labels of a job.

    Raises:
        RequestError: there are too many, or one is too long.
    """
    if len(labels) > _LABELS:
        raise field_error("labels", f"takes at most {_LABELS}")
    for key, value in labels.items():
        if not 1 <= len(key) <= _LABEL_KEY or len(value) > _LABEL_VALUE or "\0" in key + value:
            words = f"keys have 1 to {_LABEL_KEY} characters, values at most {_LABEL_VALUE}"
            raise field_error("labels", words)


def field_error(field: str, description: str) -> RequestError:
    """Say that one field does not hold."""
    return RequestError(f"{field}: {description}", violations=(Violation(field, description),))


def violation_of(problem: dict[str, Any]) -> Violation:
    """Make our violation of one of pydantic's; a text's content is never repeated."""
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    if isinstance(given, str):
        message = f"{message}, and this one has {len(given)}" if "character" in message else message
    elif isinstance(given, (int, float)):
        message = f"{message}, and it is {given}"
    return Violation(name or "request", message)
