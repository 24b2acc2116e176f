"""Fields of callers, checked; shared by forms and JSON."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from vtryon.errors import Reason, RequestError, Violation
from vtryon_services.bridges.rest.json_text import MAX_VALUES, read_json_text
from vtryon_services.bridges.rest.problems import from_validation

B = TypeVar("B", bound=BaseModel)
_MAX_NAMES, _MAX_NAME = 20, 64


def parse(kind: type[B], content: dict[str, Any]) -> B:
    """Check fields.

    Raises:
        RequestError: names each that does not hold.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise from_validation(error) from None


def parse_json(kind: type[B], text: bytes, max_values: int = MAX_VALUES, shape: type = dict) -> B:
    """Validate the fields of a JSON object by JSON's types: "5" and true are not numbers.

    Slow for a large text: call it in a worker thread.

    Args:
        kind: the fields, or the items of a list.
        text: in an encoding of JSON.
        max_values: limit of the values in it.
        shape: dict, or list for a JSON array.

    Raises:
        RequestError: the text has another shape, or fields are invalid; names each.
    """
    if not isinstance(read_json_text(text, max_values), shape):
        wanted = "object" if shape is dict else "array"
        raise RequestError(f"the JSON is no {wanted}", reason=Reason.MESSAGE_MALFORMED)
    decoded = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        return kind.model_validate_json(decoded, strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":  # half of a pair of surrogates
            raise RequestError("the JSON has a text that is no Unicode") from None
        raise from_validation(error) from None


async def only_known_parameters(request: Request) -> None:
    """Refuse parameters of the query that the route does not have.

    Raises:
        RequestError: names them.
    """
    known = {one.alias for one in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        names = [f"query.{name[:_MAX_NAME]}" for name in unknown[:_MAX_NAMES]]
        violations = tuple(Violation(name, "is no parameter of this route") for name in names)
        raise RequestError(f"{', '.join(names)}: no such parameter", violations=violations)
