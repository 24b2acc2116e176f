"""How a caller wants to be answered: `Accept` with weights, as RFC 9110 has it (section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fastapi import Request

from vtryon.errors import RequestError
from vtryon.types import ImageFormat

EVENT_STREAM = "text/event-stream"
MEDIA_TYPES = {one: f"image/{one.value}" for one in ImageFormat}


class Answer(StrEnum):
    """How a caller wants to be answered."""

    PICTURE = "picture"
    JSON = "application/json"
    EVENTS = EVENT_STREAM


@dataclass(frozen=True, slots=True)
class _Range:
    """A media range: its weight, and its place in the header."""

    kind: str
    subkind: str
    weight: float
    place: int

    @property
    def exactness(self) -> int:
        return (self.kind != "*") + (self.subkind != "*")

    def holds(self, media_type: str) -> bool:
        kind, _, subkind = media_type.partition("/")
        return self.kind in {"*", kind} and self.subkind in {"*", subkind}


def wanted_answer(request: Request) -> tuple[Answer, ImageFormat | None]:
    """Parse `Accept`: the preferred kind of response, and a picture's format.

    The format is None if any picture is accepted: the request's `format` then applies, or PNG.

    Raises:
        RequestError: none of the accepted types is available.
    """
    chosen, named = _choose(request, _OFFERED)
    if chosen not in _FORMATS:
        return Answer(chosen), None
    return Answer.PICTURE, _FORMATS[chosen] if named else None


def wanted_format(request: Request) -> ImageFormat | None:
    """Read `Accept` where the answer is a picture; None where any will do.

    Raises:
        RequestError: it names no format that there is.
    """
    chosen, named = _choose(request, tuple(_FORMATS))
    return _FORMATS[chosen] if named else None


def _choose(request: Request, offered: Sequence[str]) -> tuple[str, bool]:
    """Give the media type that the caller likes best, and whether it was named: not any will do."""
    ranges = _ranges(",".join(request.headers.getlist("accept")) or "*/*")
    liked = {one: found for one in offered if (found := _best(ranges, one)) and found.weight > 0}
    if not liked:
        raise RequestError(f"Accept names none of {', '.join(offered)}")
    chosen = max(liked, key=lambda one: _liking(liked[one]))
    return chosen, liked[chosen].exactness == _EXACT or chosen != offered[0]


def _liking(found: _Range) -> tuple[float, int, int]:
    return found.weight, found.exactness, -found.place


def _best(ranges: Sequence[_Range], media_type: str) -> _Range | None:
    """Give the most exact range that a media type is in: its weight counts."""
    holding = [one for one in ranges if one.holds(media_type)]
    return max(holding, key=lambda one: (one.exactness, one.weight), default=None)


def _ranges(header: str) -> list[_Range]:
    found = []
    for place, part in enumerate(header.lower().split(",")):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        kind, slash, subkind = media_range.partition("/")
        weight = _weight(parameters)
        if slash and kind and subkind and weight is not None:
            found.append(_Range(kind, subkind, weight, place))
    return found


def _weight(parameters: Sequence[str]) -> float | None:
    """Read `q`; None where it is no weight, and the range is passed over."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return None
            return weight if 0 <= weight <= 1 else None
    return 1.0


_EXACT = 2
_FORMATS = {media_type: one for one, media_type in MEDIA_TYPES.items()}
_OFFERED = (*_FORMATS, Answer.JSON.value, Answer.EVENTS.value)
