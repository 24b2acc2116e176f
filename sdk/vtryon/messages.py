"""Conversion between dataclasses and protobuf messages.

A dataclass derived from `ProtoType` names its message class, and its fields are named after the
message's. Enums become `StrEnum`s by name (UNSPECIFIED is None), repeated fields become tuples,
nested messages nested dataclasses, timestamps datetimes, maps dicts, and unset fields with presence
None. The value of an enum may also be passed as text.

Clients build every request with `request_message`, so that an invalid value raises a `RequestError`
with the field's name before the call starts.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Self

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from vtryon.errors import RequestError, Violation

# protobuf has two classes of field descriptors, one in Python and one in C.
FieldDescriptor = Any


class ProtoType:
    """A dataclass with a message of the same shape."""

    __slots__ = ()
    proto: ClassVar[type[Message]]
    # What a client's method calls the fields that have another name there.
    argument_names: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_proto(cls, message: Message) -> Self:
        """Read the fields that this dataclass has; ignore all other fields of the message."""
        fields = message.DESCRIPTOR.fields_by_name
        return cls(**{name: _read(message, fields[name], kind) for name, kind, _ in _fields(cls)})

    def to_proto(self) -> Message:
        """Make the message; None leaves a field unset where its type hint has None.

        Raises:
            FieldValueError: a value does not fit its field, such as a negative seed.
        """
        message = type(self).proto()
        for name, kind, optional in _fields(type(self)):
            value = getattr(self, name)
            if value is not None or not optional:
                _write_checked(message, message.DESCRIPTOR.fields_by_name[name], kind, value)
        return message


class FieldValueError(ValueError):
    """A value that does not fit its field of a message.

    Attributes:
        field: path of the field, such as "numerics.schedule".
        description: the accepted and the received type; never the content of a text.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


def request_message(request: ProtoType) -> Message:
    """Build the message of a request.

    Raises:
        RequestError: a value does not fit its field; the violation names the field.
    """
    try:
        return request.to_proto()
    except FieldValueError as error:
        field = error.field.removeprefix("options.")  # as servers name the options of a try-on
        field = request.argument_names.get(field, field)
        violation = Violation(field, error.description)
        raise RequestError(f"{field}: {error.description}", violations=(violation,)) from None


def _find_fields(cls: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name and plain type of each field, and whether it may be None.

    The plain type of `X | None` is X, and so is that of `tuple[X, ...]`.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return tuple((name, _plain(hints[name]), _is_optional(hints[name])) for name in names)


_fields: Callable[[Any], tuple[tuple[str, Any, bool], ...]] = cache(_find_fields)


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _plain(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(kind for kind in hint.__args__ if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        return hint.__args__[0]
    return hint


def _read(message: Message, field: FieldDescriptor, kind: Any) -> Any:
    value = getattr(message, field.name)
    if _is_map(field):
        return dict(value)
    if field.is_repeated:
        return tuple(_from_value(item, field, kind) for item in value)
    if field.has_presence and not message.HasField(field.name):
        return None
    return _from_value(value, field, kind)


def _from_value(value: Any, field: FieldDescriptor, kind: Any) -> Any:
    if field.enum_type is not None:
        return _member(field.enum_type, value, kind)
    if kind is datetime:
        return value.ToDatetime(tzinfo=UTC)
    return kind.from_proto(value) if field.message_type is not None else value


def _write_checked(message: Message, field: FieldDescriptor, kind: Any, value: Any) -> None:
    try:
        _write(message, field, kind, value)
    except FieldValueError as error:
        raise FieldValueError(f"{field.name}.{error.field}", error.description) from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FieldValueError(field.name, _explain(field, kind, value, error)) from None


def _write(message: Message, field: FieldDescriptor, kind: Any, value: Any) -> None:
    if _is_map(field):
        getattr(message, field.name).update(
            {_text(key): _text(item) for key, item in value.items()}
        )
    elif field.is_repeated:
        if isinstance(value, (str, bytes)):  # one item's, where several are taken
            raise TypeError("text and bytes are no lists")
        plain = [_to_value(item, field, kind) for item in value]
        getattr(message, field.name).extend(plain)
    elif isinstance(value, datetime):
        getattr(message, field.name).FromDatetime(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value.to_proto())
    else:
        setattr(message, field.name, _to_value(value, field, kind))


def _to_value(value: Any, field: FieldDescriptor, kind: Any) -> Any:
    if field.enum_type is not None:
        name = kind(value).name
        return field.enum_type.values_by_name[_prefix(field.enum_type) + name].number
    if isinstance(value, bool) and kind is not bool:  # protobuf would write 1 or 0
        raise TypeError("true and false are not numbers")
    if kind is str:
        return _text(value)
    return value.to_proto() if field.message_type is not None else value


def shown_number(value: float) -> str:
    """Write a number for an error; Python does not write integers of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return str(value)


def _text(value: Any) -> str:
    """Take text; protobuf alone would take the bytes of UTF-8 as well."""
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _explain(field: FieldDescriptor, kind: Any, value: Any, error: Exception) -> str:
    """Describe why `value` does not fit, without repeating text that a caller wrote."""
    if _is_map(field):
        if isinstance(value, Mapping):
            return _explain_first([*value, *value.values()], str)
        return f"takes a mapping of text to text, not {type(value).__name__}"
    if field.is_repeated:
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            return _explain_first(value, kind)
        return f"takes a list, not {type(value).__name__}"
    return _explain_one(value, kind) or f"does not fit: {type(error).__name__}"


def _explain_first(values: Iterable[Any], kind: Any) -> str:
    reasons = (_explain_one(value, kind) for value in values)
    return next((reason for reason in reasons if reason), "does not fit")


def _explain_one(value: Any, kind: Any) -> str:
    if kind is str and isinstance(value, str):
        at = next((at for at, char in enumerate(value) if "\ud800" <= char <= "\udfff"), None)
        return "" if at is None else f"character {at + 1} is half of a surrogate pair, not text"
    if isinstance(kind, type) and issubclass(kind, Enum):
        shown = f"{value!r:.40}" if isinstance(value, str) else type(value).__name__
        return f"takes one of {', '.join(kind)}, not {shown}"
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return f"{shown_number(value)} is out of range"
    if isinstance(kind, type) and isinstance(value, kind) and type(value) is not bool:
        return ""
    return f"takes {_KINDS.get(kind, kind.__name__)}, not {type(value).__name__}"


_KINDS = {
    str: "text",
    bytes: "bytes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _member(enum: EnumDescriptor, number: int, kind: type[Enum]) -> Enum | None:
    """Find the member of `number`; None for UNSPECIFIED and for numbers newer than this code."""
    value = enum.values_by_number.get(number)
    name = value.name.removeprefix(_prefix(enum)) if value else ""
    return kind.__members__.get(name)


@cache
def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
