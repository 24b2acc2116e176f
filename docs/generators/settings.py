"""The page of settings, from the fields of all services."""

from __future__ import annotations

import pkgutil
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from generators.tables import cell
from vtryon.catalog import CATALOG, JOBS, KAFKA, REST
from vtryon.types import Stage
from vtryon_services.runtime.settings import (
    EncoderSettings,
    ProcessSettings,
    ServiceSettings,
    StageSettings,
    variable_prefix,
)

HEAD = """# Settings

Every setting is an environment variable. `VTRYON_SAMPLING_DEVICE` configures one service;
`VTRYON_DEVICE` configures every service of the process that has the setting, and yields to the
former. An unknown variable or an invalid value stops the start with exit code 2. Durations are in
seconds, sizes in bytes.

Generated from the code by `make generate`.
"""
# From the general to the particular: a service lists what the ones above it do not have.
SHARED: dict[str, type[ProcessSettings]] = {
    "Every service": ProcessSettings,
    "Every gRPC service": ServiceSettings,
    "Every stage": StageSettings,
    "Both encoders": EncoderSettings,
}
TITLES = {
    Stage.PIPELINE: "Pipeline",
    Stage.LATENT_ENCODER: "Latent encoder",
    Stage.TEXT_ENCODER: "Text encoder",
    Stage.SAMPLING: "Sampler",
    Stage.DECODING: "Decoder",
    JOBS: "Jobs",
    REST: "REST",
    KAFKA: "Kafka",
}
SERVICES: dict[str, type[ProcessSettings]] = {
    title: pkgutil.resolve_name(CATALOG[name].settings) for name, title in TITLES.items()
}


def page() -> str:
    """Write the whole page."""
    sections = [_section(title, kind, "VTRYON_") for title, kind in SHARED.items()]
    sections += [
        _section(title, kind, variable_prefix(kind.service)) for title, kind in SERVICES.items()
    ]
    return "\n".join([HEAD, *sections])


def _section(title: str, kind: type[ProcessSettings], prefix: str) -> str:
    shared = [one for one in SHARED.values() if one is not kind and issubclass(kind, one)]
    rows = [
        _row(prefix + name.upper(), field)
        for name, field in kind.model_fields.items()
        if not any(_is_same(field, one.model_fields.get(name)) for one in shared)
    ]
    head = "| variable | values | default | description |\n|---|---|---|---|"
    return "\n".join([f"## {title}", "", head, *rows, ""])


def _is_same(field: FieldInfo, other: FieldInfo | None) -> bool:
    return other is not None and field.default == other.default


def _row(variable: str, field: FieldInfo) -> str:
    default = _size(field.default) if variable.endswith("_BYTES") else _default(field)
    cells = (f"`{variable}`", _values(field), default, field.description or "")
    return "| " + " | ".join(map(cell, cells)) + " |"


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(one, name):,}".replace(",", " ")
        for one in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(one, name, None) is not None
    ]
    return " ".join([_type(field.annotation), *bounds])


def _type(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return _type(get_args(kind)[0])
    if get_origin(kind) in {Union, types.UnionType}:
        return _type(next(one for one in get_args(kind) if one is not type(None)))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    names = {bool: "true, false", int: "integer", float: "number", str: "text", Path: "path"}
    return "secret" if kind is SecretStr else names.get(kind, "list")


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _size(count: int) -> str:
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count and not count % 1024**exponent:
            return f"`{count}` ({count // 1024**exponent} {unit})"
    return f"`{count}`"
