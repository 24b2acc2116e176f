"""Request files: options of a try-on, and requirements on pictures and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vtryon.errors import RequestError
from vtryon.files import strict
from vtryon.files.jsonable import plain
from vtryon.files.text import read_json
from vtryon.types import (
    Numerics,
    Stage,
)
from vtryon.workflow.request import WorkflowRequest

_NUMERICS = {"profile": strict.profile, **strict.NUMERICS}
_OPTIONS = {name: kind for name, kind in strict.OPTIONS.items() if name not in _NUMERICS}
_WEIGHTS = ("transformer", "text_encoder", "vae", "weight_dtype")
_CHECKPOINT = {*_WEIGHTS, "zero_cond_t", "digests"}


@dataclass(frozen=True, slots=True)
class RequestFile:
    """A request as it was read from a file.

    Attributes:
        options: arguments of `vtryon.Client.try_on`.
        pictures: file names of the person and the garments.
        weights: names of weights by part, which a server does not report.
        zero_cond_t: whether the checkpoint is to modulate references as at time zero.
        digests: the model digest that each stage must report; with them, names need no check.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    zero_cond_t: bool = False
    digests: Mapping[Stage, str] = field(default_factory=dict)

    def without_loras(self) -> RequestFile:
        """Remove the LoRAs, for a checkpoint that has them merged.

        Raises:
            RequestError: there are none.
        """
        others = {name: value for name, value in self.options.items() if name != "loras"}
        if not self.options.get("loras"):
            raise RequestError(f"--ignore-loras: {self.name} names no LoRAs")
        return replace(self, options=others)

    def departures(self, pictures: Sequence[Path]) -> list[str]:
        """List the parts of the file that can't be honoured, or not verifiably."""
        found = []
        if (self.weights or self.zero_cond_t) and not self.digests:
            named = [f"{part} {name}" for part, name in self.weights.items()]
            named += ["references at time zero (zero_cond_t)"] if self.zero_cond_t else []
            found.append(
                f"{self.name} names {', '.join(named)}; the mesh draws with its own checkpoint and "
                "does not report names, so they can't be compared"
            )
        if self.pictures and len(self.pictures) != len(pictures):
            found.append(
                f"{self.name} is for {len(self.pictures)} pictures "
                f"({', '.join(self.pictures)}), and {len(pictures)} are given"
            )
        return found

    def remarks(self, pictures: Sequence[Path]) -> list[str]:
        """List the parts of the file that arguments of the command replace."""
        given = tuple(path.name for path in pictures)
        if not self.pictures or len(self.pictures) != len(given) or self.pictures == given:
            return []
        return [f"in place of {', '.join(self.pictures)}, {', '.join(given)} are used"]

    def check_digest(self, stage: Stage | None, digest: str) -> str:
        """Say that a stage computes with another model than the file names; empty where not."""
        wanted = self.digests.get(stage) if stage else None
        if wanted is None or wanted == digest:
            return ""
        return f"{self.name} is for the {stage} digest {wanted}, and the mesh reports {digest}"


def describe(request: WorkflowRequest) -> dict[str, Any]:
    """Return a request in the form of a file, without unset options."""
    options = {"prompt": request.prompt, **plain(request.options)}
    numerics = options["numerics"]
    checkpoint = {
        **request.models,
        "weight_dtype": request.weight_dtype,
        "zero_cond_t": request.zero_cond_t,
    }
    described = {
        **{name: options.get(name) for name in _OPTIONS},
        "numerics": {name: value for name, value in numerics.items() if value is not None},
        "pictures": request.pictures,
        "checkpoint": {name: value for name, value in checkpoint.items() if value is not None},
    }
    return {name: value for name, value in described.items() if value is not None}


def read_request(path: Path) -> RequestFile:
    """Read a request file; every key is used or rejected.

    Raises:
        RequestError: a key is unknown, or a value is invalid for its key.
    """
    content = _mapping(read_json(path), path.name)
    _refuse_unknown(content, {*_OPTIONS, "numerics", "pictures", "checkpoint"}, path.name)
    checkpoint = _mapping(content.get("checkpoint", {}), f"{path.name}: checkpoint")
    if "loras" in checkpoint:
        raise RequestError(
            f"{path.name}: checkpoint.loras: LoRAs are options of the request; write "
            '"loras": [{"name": NAME, "strength": NUMBER}] beside "checkpoint", with the names '
            "that the server has for them"
        )
    _refuse_unknown(checkpoint, _CHECKPOINT, f"{path.name}: checkpoint")
    options = _take(content, _OPTIONS, path.name)
    if "numerics" in content:
        where = f"{path.name}: numerics"
        numerics = _mapping(content["numerics"], where)
        _refuse_unknown(numerics, {*_NUMERICS}, where)
        options["numerics"] = Numerics(**_take(numerics, _NUMERICS, where))
    wants = _take(
        {**checkpoint, "pictures": content.get("pictures", [])},
        {
            **dict.fromkeys(_WEIGHTS, strict.text),
            "pictures": _texts,
            "zero_cond_t": _flag,
            "digests": _digests,
        },
        path.name,
    )
    weights = {part: wants.pop(part) for part in _WEIGHTS if part in wants}
    return RequestFile(path.name, options, weights=weights, **wants)


def _take(
    content: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], Any]], where: str
) -> dict[str, Any]:
    taken = {}
    for name, kind in kinds.items():
        if name in content:
            try:
                taken[name] = kind(content[name])
            except (ValueError, TypeError, KeyError) as error:
                raise RequestError(f"{where}: {name}: {error}") from None
    return taken


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} is not a JSON object")
    return value


def _refuse_unknown(content: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(content) - known):
        raise RequestError(
            f"{where}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}"
        )


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(strict.text, _items(value)))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _digests(value: Any) -> dict[Stage, str]:
    if not isinstance(value, dict):
        raise ValueError("not an object of stages and digests")
    return {Stage(stage): strict.text(digest) for stage, digest in value.items()}
