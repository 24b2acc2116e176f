"""Request bodies: the same fields in forms and in JSON, with the ranges of the gRPC interface."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    WithJsonSchema,
)

from vtryon.errors import RequestError
from vtryon.options import DEFAULT_PROMPT
from vtryon.types import (
    MAX_GARMENTS,
    MAX_LORAS,
    GuidanceNorm,
    ImageFormat,
    Lora,
    Numerics,
    PreviewPolicy,
    Priority,
    Profile,
    ResizeFilter,
    RopeLayout,
    SigmaSchedule,
)
from vtryon_services.bridges.rest.checked import parse_json
from vtryon_services.bridges.rest.forms import read_form
from vtryon_services.validation.ranges import (
    EncodingFields,
    EncodingRanges,
    LoraRange,
    PreviewRanges,
    PromptRanges,
    SamplingRanges,
    check_ranges,
    field_error,
)

B = TypeVar("B", bound=BaseModel)
JSON = "application/json"
_DATA_URL, _DATA_URL_HEAD = "data:", 256
_FOR_URLS = str.maketrans("-_", "+/")


def _from_base64(value: object) -> bytes:
    """Decode base64 as clients write it: in lines, for URLs, without padding, in a data URL."""
    if not isinstance(value, str):
        raise ValueError("takes text in base64")
    text = value
    if value[:_DATA_URL_HEAD].lstrip().lower().startswith(_DATA_URL):
        head = value[:_DATA_URL_HEAD].partition(",")[0]
        if not head.lower().endswith(";base64"):
            raise ValueError("is a data URL without base64")
        text = value[len(head) + 1 :]
    text = "".join(text.split()).rstrip("=").translate(_FOR_URLS)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("is no base64") from None


Base64 = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class NumericsBody(BaseModel):
    """A profile's choices changed one by one; see numerics.proto."""

    model_config = ConfigDict(extra="forbid")

    schedule: SigmaSchedule | None = None
    shift: float | None = Field(default=None, ge=0.01, le=100, allow_inf_nan=False)
    guidance_norm: GuidanceNorm | None = None
    resize: ResizeFilter | None = None
    rope_layout: RopeLayout | None = None


class PreviewsBody(PreviewRanges):
    """Which previews an event stream or a job has; see PreviewPolicy in stream.proto."""

    model_config = ConfigDict(extra="forbid")

    every_steps: int = Field(default=1, ge=0, le=200)
    max_pixels: int = Field(default=0, ge=0, le=1024 * 1024)


def in_a_form_as_json(kind: type[B], shape: type = dict) -> BeforeValidator:
    """Read an object, or a list, that a form has as JSON text and JSON has as it is."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse_json(kind, value.encode("utf-8", "surrogatepass"), shape=shape)
        except RequestError as error:
            raise ValueError(error.message) from None

    return BeforeValidator(read)


class Timed(BaseModel):
    """Fields of every request; unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", from_attributes=False)

    timeout_seconds: float | None = Field(
        default=None, gt=0, le=3600, description="The deadline of the whole request."
    )


class Profiled(Timed):
    """Fields of requests to stages with numerics."""

    profile: Profile | None = Field(default=None, description="A named set of numerics.")
    numerics: Annotated[NumericsBody | None, in_a_form_as_json(NumericsBody)] = Field(
        default=None, description="What departs from the profile; in a form, as JSON."
    )

    def own_numerics(self) -> Numerics | None:
        """Give profile and departures together."""
        changed = self.numerics.model_dump() if self.numerics else {}
        if self.profile is None and not any(changed.values()):
            return None
        return Numerics(profile=self.profile, **changed)


class LoraBody(LoraRange):
    """A LoRA of the server's setting, and its strength."""

    model_config = ConfigDict(extra="forbid")


class LorasBody(RootModel[Annotated[list[LoraBody], Field(max_length=MAX_LORAS)]]):
    """LoRAs that apply."""


class Sampled(SamplingRanges, Profiled):
    """Fields of the sampler."""

    loras: Annotated[LorasBody | None, in_a_form_as_json(LorasBody, list)] = Field(
        default=None,
        description="LoRAs of the server that apply, up to 8; in a form, as JSON.",
    )

    width: int | None = Field(default=None, ge=16, multiple_of=16)
    height: int | None = Field(default=None, ge=16, multiple_of=16)
    priority: Priority | None = Field(
        default=None, description="`batch` is scheduled after all interactive requests."
    )

    def own_loras(self) -> tuple[Lora, ...]:
        """Give the LoRAs as the SDK has them."""
        return tuple(Lora(one.name, one.strength) for one in self.loras.root) if self.loras else ()


class Encoded(EncodingFields):
    """How a picture is encoded, where `Accept` may choose the format."""

    def encoding(self, accepted_format: ImageFormat | None) -> dict[str, Any]:
        """Give format and quality.

        Raises:
            RequestError: the format has no quality.
        """
        chosen = EncodingFields.model_construct(
            format=self.format or accepted_format, quality=self.quality
        )
        check_ranges(chosen, EncodingRanges)
        return chosen.model_dump()


class TryOnFields(PromptRanges, Sampled, Encoded):
    """A try-on without its pictures; the server chooses defaults for unset fields."""

    prompt: str = Field(
        default=DEFAULT_PROMPT,
        max_length=PromptRanges.model_fields["prompt"].metadata[0].max_length,
        description='It speaks of "picture 1", the person, and "picture 2", the garment.',
    )
    previews: Annotated[PreviewsBody | None, in_a_form_as_json(PreviewsBody)] = Field(
        default=None,
        description="Of an event stream or a job, a preview after every step by default; "
        "in a form, as JSON.",
    )

    def options(
        self, accepted_format: ImageFormat | None, *, previews: bool = True, shown: bool = True
    ) -> dict[str, Any]:
        """Give the arguments of `vtryon.Client.try_on`.

        Args:
            accepted_format: the format where the fields name none.
            previews: whether there are previews where the fields do not say.
            shown: whether the answer has a place for previews.

        Raises:
            RequestError: the fields ask for previews that the answer has no place for, or for a
                quality of a format that has none.
        """
        own = set(TryOnFields.model_fields) - {"profile", "numerics", "previews", "loras"}
        wanted: PreviewPolicy | bool = previews
        if self.previews is not None:
            wanted = PreviewPolicy(self.previews.every_steps, self.previews.max_pixels)
            if wanted.every_steps and not shown:
                words = "takes an answer with events, `Accept: text/event-stream`, or a job"
                raise field_error("previews", words)
        return {
            **self.model_dump(include=own),
            **self.encoding(accepted_format),
            "numerics": self.own_numerics(),
            "loras": self.own_loras(),
            "previews": wanted,
        }


class TryOnForm(TryOnFields):
    """A try-on as form fields, with pictures as files."""

    person: str = Field(json_schema_extra={"format": "binary"})
    garments: list[str] = Field(default=[], json_schema_extra={"items": {"format": "binary"}})


class TryOnJson(TryOnFields):
    """The same as JSON, with pictures in base64."""

    person: Base64
    garments: list[Base64] = Field(default=[], max_length=MAX_GARMENTS)


class Labels(RootModel[dict[str, str]]):
    """Whatever is to be found again with a job."""


class JobFields(TryOnFields):
    """A job but for its pictures."""

    labels: Annotated[Labels | None, in_a_form_as_json(Labels)] = Field(
        default=None,
        description="Names and values to find again with the job; in a form, as JSON.",
    )

    def own_labels(self) -> dict[str, str]:
        """Give the labels."""
        return self.labels.root if self.labels else {}


class JobForm(JobFields, TryOnForm):
    """A job as form fields, with pictures as files."""


class JobJson(JobFields, TryOnJson):
    """The same as JSON, with pictures in base64."""


async def read_json(request: Request, kind: type[B]) -> B:
    """Read a JSON body, in a worker thread.

    Raises:
        RequestError: the body is not JSON, or a field is invalid.
    """
    body = await request.body()
    most = request.app.state.settings.max_json_values

    return await asyncio.to_thread(parse_json, kind, body, most)


def media_type_of(request: Request) -> str:
    """Give the kind of a request's body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_try_on(request: Request) -> tuple[TryOnFields, list[bytes]]:
    """Read a try-on, as a form or as JSON: its fields, and its pictures, the person first.

    Raises:
        RequestError: it does not hold.
    """
    if media_type_of(request) == JSON:
        content = await read_json(request, TryOnJson)
        return content, [content.person, *content.garments]
    return await _read_form(request, TryOnFields)


async def read_job(request: Request) -> tuple[JobFields, list[bytes]]:
    """Read a job as `read_try_on` reads a try-on.

    Raises:
        RequestError: it does not hold.
    """
    if media_type_of(request) == JSON:
        content = await read_json(request, JobJson)
        return content, [content.person, *content.garments]
    return await _read_form(request, JobFields)


async def _read_form(request: Request, kind: type[B]) -> tuple[B, list[bytes]]:
    form = await read_form(request, "person", "garments", "garment")
    garments = form.pictures("garments", "garment")
    pictures = [*form.pictures("person", least=1, most=1), *garments]
    return form.read(kind), pictures
