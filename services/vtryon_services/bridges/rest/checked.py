"""Fields of callers, checked; shared by forms and JSON."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from vtryon.errors import RequestError, Violation
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
