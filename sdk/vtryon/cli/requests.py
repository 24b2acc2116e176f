"""Requests as files: what a try-on is told, and what it wants of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtryon.errors import RequestError
from vtryon.plain import plain
from vtryon.types import (
    GuidanceNorm,
    Numerics,
    Profile,
    ResizeFilter,
    RopeLayout,
    SigmaSchedule,
)
from vtryon.workflow.meaning import Request

_MAX_BYTES = 16 * 1024 * 1024
_OPTIONS = (
    "prompt",
    "negative_prompt",
    "steps",
    "true_cfg_scale",
    "seed",
    "strength",
    "width",
    "height",
)
_NUMERICS: dict[str, Any] = {
    "profile": Profile,
    "schedule": SigmaSchedule,
    "shift": float,
    "guidance_norm": GuidanceNorm,
    "resize": ResizeFilter,
    "rope_layout": RopeLayout,
}


def describe(request: Request) -> dict[str, Any]:
    """Give a request as a file has it: what is not said is left out."""
    options = {name: getattr(request, name) for name in _OPTIONS}
    numerics = plain(request.numerics)
    described = {
        **options,
        "numerics": {name: value for name, value in numerics.items() if value is not None},
        "pictures": request.pictures,
        "checkpoint": {
            **request.models,
            "loras": plain(request.loras),
            "zero_cond_t": request.zero_cond_t,
        },
    }
    return {name: value for name, value in described.items() if value is not None}


def read_request(path: Path) -> dict[str, Any]:
    """Read a request file as arguments of `vtryon.Client.try_on`.

    Raises:
        RequestError: it is none.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise RequestError(f"{path.name} is no request")
    options = {name: content[name] for name in _OPTIONS if name in content}
    unknown = set(content) - {*_OPTIONS, "numerics", "pictures", "checkpoint"}
    if unknown:
        raise RequestError(f"{path.name}: nobody knows {', '.join(sorted(unknown))}")
    if numerics := content.get("numerics"):
        try:
            chosen = {name: _NUMERICS[name](value) for name, value in numerics.items()}
            options["numerics"] = Numerics(**chosen)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise RequestError(f"{path.name}: numerics: {error}") from None
    return options


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RequestError: it is none, or too large.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RequestError(f"{path.name} has more than {_MAX_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RequestError(f"{path.name} is no JSON") from None
