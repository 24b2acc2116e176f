"""The one conversion between dataclasses and protobuf messages.

A dataclass that derives from `ProtoType` names its message class and has fields of the message's
names. Enums become `StrEnum`s by name (UNSPECIFIED is None), repeated fields become tuples, nested
messages become nested dataclasses, timestamps datetimes, maps dicts, and a field that is not set is
None where the message can tell.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Self

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

# protobuf has two classes of field descriptors, one in Python and one in C.
FieldDescriptor = Any


class ProtoType:
    """A dataclass with a message of the same shape."""

    __slots__ = ()
    proto: ClassVar[type[Message]]

    @classmethod
    def from_proto(cls, message: Message) -> Self:
        """Read the fields that this dataclass has; others in the message are left alone."""
        fields = message.DESCRIPTOR.fields_by_name
        return cls(**{name: _read(message, fields[name], kind) for name, kind in _fields(cls)})

    def to_proto(self) -> Message:
        """Make the message; None leaves a field unset.

        Raises:
            ValueError: a value does not fit its field, such as text that is no Unicode.
        """
        message = type(self).proto()
        for name, _ in _fields(type(self)):
            value = getattr(self, name)
            if value is not None:
                _write(message, message.DESCRIPTOR.fields_by_name[name], value)
        return message


def _find_fields(cls: Any) -> tuple[tuple[str, Any], ...]:
    """Name and plain type of each field: of `X | None` the X, of `tuple[X, ...]` too."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return tuple((name, _plain(hints[name])) for name in names)


_fields: Callable[[Any], tuple[tuple[str, Any], ...]] = cache(_find_fields)


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


def _write(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_map(field):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        plain = [_to_value(item, field) for item in value]
        getattr(message, field.name).extend(plain)
    elif isinstance(value, datetime):
        getattr(message, field.name).FromDatetime(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value.to_proto())
    else:
        setattr(message, field.name, _to_value(value, field))


def _to_value(value: Any, field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[_prefix(field.enum_type) + value.name].number
    return value.to_proto() if field.message_type is not None else value


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
