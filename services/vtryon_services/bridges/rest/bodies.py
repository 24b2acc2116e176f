"""What requests bring: the same fields in a form and in JSON, with the ranges of the gRPC door."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from vtryon.errors import Reason, RequestError
from vtryon.options import DEFAULT_PROMPT
from vtryon.pictures import read_picture
from vtryon.types import (
    GuidanceNorm,
    ImageFormat,
    Numerics,
    Priority,
    Profile,
    ResizeFilter,
    RopeLayout,
    SigmaSchedule,
)
from vtryon_services.bridges.rest.problems import from_validation
from vtryon_services.runtime.ranges import (
    EncodingRanges,
    PromptRanges,
    SamplingRanges,
    field_error,
)

B = TypeVar("B", bound=BaseModel)
FORM, JSON = "multipart/form-data", "application/json"
_MAX_FILES, _MAX_FIELDS = 16, 64
_MAX_FIELD_BYTES = 64 * 1024


def _from_base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("takes text in base64")
    try:
        return base64.b64decode(value, validate=True)
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


class Profiled(BaseModel):
    """What every request can be told; fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid", from_attributes=False)

    profile: Profile | None = Field(default=None, description="A named set of numerics.")
    numerics: NumericsBody | None = Field(
        default=None, description="What departs from the profile; in a form, as JSON."
    )
    timeout_seconds: float | None = Field(
        default=None, gt=0, le=3600, description="The deadline of the whole request."
    )

    @field_validator("numerics", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("is no JSON") from None

    def own_numerics(self) -> Numerics | None:
        """Give profile and departures together."""
        changed = self.numerics.model_dump() if self.numerics else {}
        if self.profile is None and not any(changed.values()):
            return None
        return Numerics(profile=self.profile, **changed)


class Sampled(SamplingRanges, Profiled):
    """What decides how is drawn."""

    width: int | None = Field(default=None, ge=16, multiple_of=16)
    height: int | None = Field(default=None, ge=16, multiple_of=16)


class TryOnFields(PromptRanges, Sampled, EncodingRanges):
    """A try-on but for its pictures; what is left out is the server's choice."""

    prompt: str = Field(
        default=DEFAULT_PROMPT,
        max_length=PromptRanges.model_fields["prompt"].metadata[0].max_length,
        description='It speaks of "picture 1", the person, and "picture 2", the garment.',
    )
    priority: Priority | None = None

    def options(self, accepted_format: ImageFormat | None) -> dict[str, Any]:
        """Give the arguments of `vtryon.Client.try_on`; the format is the caller's next choice."""
        own = set(TryOnFields.model_fields) - {"profile", "numerics"}
        plain = self.model_dump(include=own)
        chosen = self.format or accepted_format
        return {**plain, "numerics": self.own_numerics(), "format": chosen}


class TryOnForm(TryOnFields):
    """A form's fields, files beside."""

    person: str = Field(json_schema_extra={"format": "binary"})
    garments: list[str] = Field(default=[], json_schema_extra={"items": {"format": "binary"}})


class TryOnJson(TryOnFields):
    """The same as JSON, with pictures in base64."""

    person: Base64
    garments: list[Base64] = []


class Form:
    """A form that was read whole: files by name, in order, and fields."""

    def __init__(self, files: dict[str, list[bytes]], fields: dict[str, Any]) -> None:
        self.files = files
        self.fields = fields

    def pictures(self, *names: str, least: int = 0) -> list[bytes]:
        """Take the files of these names, which are pictures.

        Raises:
            RequestError: there are too few, or one is over the limit.
        """
        found = [data for name in names for data in self.files.pop(name, [])]
        if len(found) < least:
            raise field_error(names[0], "the file is missing")
        return [read_picture(data) for data in found]

    def file(self, name: str) -> bytes:
        """Take the one file of a name.

        Raises:
            RequestError: there is none, or there are several.
        """
        found = self.files.pop(name, [])
        if len(found) != 1:
            raise field_error(name, f"takes one file, and there are {len(found)}")
        return found[0]

    def read(self, kind: type[B]) -> B:
        """Read the fields.

        Raises:
            RequestError: names each that does not hold, and each file that nobody took.
        """
        if self.files:
            raise field_error(next(iter(self.files)), "no file of that name is taken")
        return parse(kind, self.fields)


async def read_form(request: Request) -> Form:
    """Read a multipart form, whole.

    Raises:
        RequestError: it is none, or brings too much.
    """
    if (kind := media_type_of(request)) != FORM:
        raise RequestError(
            f"the body is {kind or 'of no kind'}, not {FORM}", reason=Reason.MESSAGE_MALFORMED
        )
    try:
        async with request.form(
            max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            return await _collect(form)
    except HTTPException as error:
        raise RequestError(f"no form: {error.detail}", reason=Reason.MESSAGE_MALFORMED) from None


async def _collect(form: FormData) -> Form:
    files: dict[str, list[bytes]] = {}
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name.removesuffix("[]"), []).append(await value.read())
        elif name == "sigmas":
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise field_error(name, "is given twice")
        elif value != "":  # as browsers send a field that is left empty
            fields[name] = value
    return Form(files, fields)


async def read_json(request: Request, kind: type[B]) -> B:
    """Read a JSON body.

    Raises:
        RequestError: it is none, or does not hold.
    """
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RequestError("the body is no JSON", reason=Reason.MESSAGE_MALFORMED) from None
    if not isinstance(content, dict):
        raise RequestError("the body is no JSON object", reason=Reason.MESSAGE_MALFORMED)
    return parse(kind, content)


def parse(kind: type[B], content: dict[str, Any]) -> B:
    """Check fields.

    Raises:
        RequestError: names each that does not hold.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise from_validation(error) from None


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
    form = await read_form(request)
    pictures = [*form.pictures("person", least=1)[:1], *form.pictures("garments", "garment")]
    return form.read(TryOnFields), pictures
