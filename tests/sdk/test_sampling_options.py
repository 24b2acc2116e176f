"""The table of sampling options, and the declarations that can't be made from it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vtryon.cli import options as cli
from vtryon.files import strict
from vtryon.options import TryOnArguments, make_options
from vtryon.sampling_options import SAMPLING_OPTIONS, SamplingArguments
from vtryon.types import TryOnOptions
from vtryon.v1 import pipeline_pb2, sampling_pb2
from vtryon_services.triton.contract import PARAMETERS
from vtryon_services.validation.ranges import SamplingRanges

SCHEMAS = Path(__file__).parents[2] / "protos" / "kafka"
NAMES = [*SAMPLING_OPTIONS]


@pytest.mark.parametrize("message", [sampling_pb2.SampleStart, pipeline_pb2.TryOnOptions])
@pytest.mark.parametrize("name", NAMES)
def test_messages_have_each_option(message: Any, name: str) -> None:
    kind, _ = SAMPLING_OPTIONS[name]
    field = message.DESCRIPTOR.fields_by_name[name]
    assert field.is_repeated == (kind is tuple)
    assert field.has_presence != (kind is tuple)
    whole = {field.CPPTYPE_UINT32, field.CPPTYPE_UINT64}
    assert field.cpp_type in (whole if kind is int else {field.CPPTYPE_DOUBLE})


@pytest.mark.parametrize("schema", ["job_request", "stage_request"])
@pytest.mark.parametrize("name", NAMES)
def test_schemas_have_each_option(schema: str, name: str) -> None:
    kind, _ = SAMPLING_OPTIONS[name]
    [found] = _records(json.loads((SCHEMAS / f"{schema}.avsc").read_text()), "steps")
    [declared] = [one["type"] for one in found if one["name"] == name]
    if kind is tuple:
        assert declared == {"type": "array", "items": "double"}
    else:
        assert declared[:2] == ["null", {int: declared[1], float: "double"}[kind]]


def _records(node: Any, name: str) -> list[list[dict[str, Any]]]:
    """Find the fields of the records that have a field of this name."""
    if isinstance(node, list):
        return [found for one in node for found in _records(one, name)]
    if not isinstance(node, dict):
        return []
    inner = [found for one in node.values() for found in _records(one, name)]
    own = node.get("fields", [])
    return [own, *inner] if any(one["name"] == name for one in own) else inner


def test_keyword_arguments_are_those_of_the_table() -> None:
    assert [*SamplingArguments.__annotations__] == NAMES
    own = {one.name for one in fields(TryOnOptions)}
    assert TryOnArguments.__optional_keys__ == own - {"prompt"} | {"profile"}


def test_every_interface_knows_each_option() -> None:
    for known in (cli.SAMPLING, strict.OPTIONS, PARAMETERS, SamplingRanges.model_fields):
        assert set(NAMES) <= set(known)


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_range_or_is_a_list(name: str) -> None:
    kind, option = SAMPLING_OPTIONS[name]
    assert option.help.endswith((".", "'."))
    assert option.at_most is not None
    if kind is float:
        assert f"{option.at_most:g}" in option.help


def test_an_unknown_argument_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'cfg_scale'; the options are format, .*true_cfg"):
        make_options(cfg_scale=3.0)  # type: ignore[call-arg]
