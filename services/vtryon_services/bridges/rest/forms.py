"""Multipart forms as browsers and clients write them: files by name, in order, and fields."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vtryon.errors import Reason, RequestError
from vtryon.pictures import read_picture
from vtryon_services.bridges.rest.checked import parse
from vtryon_services.validation.ranges import field_error

B = TypeVar("B", bound=BaseModel)
FORM = "multipart/form-data"
_MAX_FIELD_BYTES = 64 * 1024
_PIECE = 256 * 1024
# An empty text is a value of these; elsewhere it is a field that was left blank.
_TEXTS = {"prompt", "negative_prompt"}
_LISTS = {"sigmas"}
_TEXT_KINDS = ("text/", "application/json")


@dataclass(slots=True)
class FormPart:
    """One part of a form."""

    name: str = ""
    filename: str | None = None
    kind: str = ""
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0

    @property
    def data(self) -> bytes:
        """All of its bytes."""
        return b"".join(self.pieces)

    @property
    def blank(self) -> bool:
        """Whether it is a file that was left blank, as browsers send it."""
        return not self.filename and not self.size

    def is_file(self, files: Collection[str]) -> bool:
        """Tell whether it is a file: by its name, or else by how it was sent."""
        if self.name in files:
            return True
        as_file = self.filename is not None or self.kind != ""
        return as_file and not self.kind.startswith(_TEXT_KINDS)

    def text(self) -> str:
        """Decode a field.

        Raises:
            RequestError: it is too long, or no UTF-8.
        """
        if self.size > _MAX_FIELD_BYTES:
            limit = f"the limit of a field is {_MAX_FIELD_BYTES}"
            raise field_error(
                self.name, f"has {self.size} bytes and is not sent as a file; {limit}"
            )
        try:
            return self.data.decode("utf-8-sig")  # a file from Windows may begin with a mark
        except UnicodeDecodeError:
            raise field_error(self.name, "is no text in UTF-8") from None


class Form:
    """A form that was read whole."""

    def __init__(self, files: dict[str, list[bytes]], fields: dict[str, Any]) -> None:
        self.files = files
        self.fields = fields

    def pictures(self, *names: str, least: int = 0, most: int | None = None) -> list[bytes]:
        """Take the files of these names, which are pictures.

        Raises:
            RequestError: there are too few or too many, or one is over the limit.
        """
        found = [data for name in names for data in self.files.pop(name, [])]
        if len(found) < least:
            raise field_error(names[0], "the file is missing")
        if most is not None and len(found) > most:
            raise field_error(names[0], f"takes at most {most} files, and there are {len(found)}")
        return [read_picture(data) for data in found]

    def file(self, name: str) -> bytes:
        """Return the only file with a name.

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
            RequestError: names each that does not hold, and each file that is not used.
        """
        if self.files:
            raise field_error(next(iter(self.files)), "no file of that name is taken")
        return parse(kind, self.fields)


async def read_form(request: Request, *files: str) -> Form:
    """Read a multipart form completely.

    Args:
        request: with the body.
        files: names whose parts are files, even without a file name.

    Raises:
        RequestError: the body is not a form, or exceeds a limit.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.decode("latin-1").lower() != FORM:
        named = kind.decode("latin-1") or "of no kind"
        raise RequestError(f"the body is {named}, not {FORM}", reason=Reason.MESSAGE_MALFORMED)
    if not options.get(b"boundary"):
        raise _no_form("its Content-Type has no boundary")
    body = await request.body()
    most = request.app.state.settings.max_form_parts
    parts = await asyncio.to_thread(_parse, options[b"boundary"], body, most)
    return _collect(parts, files)


def _collect(parts: list[FormPart], names: Collection[str]) -> Form:
    files: dict[str, list[bytes]] = {}
    fields: dict[str, Any] = {}
    for part in parts:
        name = part.name = part.name.removesuffix("[]")
        if part.is_file(names):
            if not part.blank:
                files.setdefault(name, []).append(part.data)
        elif not (text := part.text()) and name not in _TEXTS:
            continue  # as browsers send a field that is left empty
        elif name in _LISTS:
            fields.setdefault(name, []).append(text)
        elif name in fields:
            raise field_error(name, "is given twice")
        else:
            fields[name] = text
    return Form(files, fields)


def _parse(boundary: bytes, body: bytes, most: int) -> list[FormPart]:
    reader = _Reader(most)
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        for start in range(0, len(body), _PIECE):
            parser.write(body[start : start + _PIECE])
        parser.finalize()
    except FormParserError as error:
        raise _no_form(str(error)) from None
    if not reader.ended:
        raise _no_form("its last boundary is missing")
    return reader.parts


class _Reader:
    """Callbacks of the parser, which collect parts."""

    def __init__(self, most: int) -> None:
        self.parts: list[FormPart] = []
        self.ended = False
        self._most = most
        self._name = self._value = b""

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._most:
            raise _no_form(f"it has more than {self._most} parts, which is the limit")
        self.parts.append(FormPart())

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        part, name, value = self.parts[-1], self._name.lower(), self._value
        self._name = self._value = b""
        if name == b"content-type":
            part.kind = value.decode("latin-1").strip().lower()
        elif name == b"content-disposition":
            _, options = parse_options_header(value)
            part.name = _text(options.get(b"name", b""))
            if b"filename" in options:
                part.filename = _text(options[b"filename"])

    def _headers_finished(self) -> None:
        if not self.parts[-1].name:
            raise _no_form("a part has no name")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.pieces.append(data[start:end])
        part.size += end - start

    def _end(self) -> None:
        self.ended = True


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _no_form(words: str) -> RequestError:
    return RequestError(f"the body is no form: {words}", reason=Reason.MESSAGE_MALFORMED)
