"""The dataclasses of Kafka's records have the fields of their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from tests.support.kafka import SCHEMAS, schema

from vtryon_services.bridges.kafka import records
from vtryon_services.bridges.kafka.records import (
    Claim,
    Content,
    ErrorRecord,
    JobEventRecord,
    PayloadRecord,
    StageRequestRecord,
    TensorRecord,
    TopicRecord,
)

PRIMITIVES = {
    "null": type(None),
    "string": str,
    "enum": str,
    "bytes": bytes,
    "int": int,
    "long": int,
    "double": float,
}
TOPIC_RECORDS: list[Any] = [
    one
    for one in vars(records).values()
    if isinstance(one, type) and issubclass(one, TopicRecord) and one is not TopicRecord
]


def test_each_schema_has_a_dataclass() -> None:
    assert {one.schema for one in TOPIC_RECORDS} == {path.stem for path in SCHEMAS.glob("*.avsc")}


@pytest.mark.parametrize("kind", TOPIC_RECORDS)
def test_fields_are_those_of_the_schema(kind: Any) -> None:
    compare(kind, schema(kind.schema), {})


def compare(kind: Any, declared: Any, named: dict[str, Any]) -> None:
    """Compare names, order, types and defaults of a dataclass and a schema's record."""
    named[declared["name"]] = declared
    own, hints = fields(kind), get_type_hints(kind)
    assert [one.name for one in own] == [one["name"] for one in declared["fields"]]
    for field, there in zip(own, declared["fields"], strict=True):
        where = f"{kind.__name__}.{field.name}"
        assert default_of(field) == there.get("default", MISSING), where
        kinds = there["type"] if isinstance(there["type"], list) else [there["type"]]
        assert ("null" in kinds) == (type(None) in get_args(hints[field.name])), where
        for one in kinds:
            compare_type(hints[field.name], one, named, where)


def default_of(field: Field[Any]) -> Any:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return [] if default == () else default


def compare_type(hint: Any, declared: Any, named: dict[str, Any], where: str) -> None:
    declared = named.get(declared, declared) if isinstance(declared, str) else declared
    name = declared if isinstance(declared, str) else declared["type"]
    if name == "array":
        assert get_origin(hint) is tuple, where
        compare_type(get_args(hint)[0], declared["items"], named, where)
    elif name == "map" or (name == "record" and declared["name"] == "Options"):
        assert get_origin(hint) is Mapping, where  # options have a table and tests of their own
    elif name == "record":
        [kind] = [one for one in (hint, *get_args(hint)) if is_dataclass(one)]
        compare(kind, declared, named)
    elif name == "long" and "logicalType" in declared:
        assert hint is datetime, where
    else:
        assert PRIMITIVES[name] in (hint, *get_args(hint)), where


def test_a_record_is_read_as_it_was_written() -> None:
    content = Content(claim=Claim("a/b", "0" * 64, 3))
    request = StageRequestRecord(
        request_id="r",
        options={"steps": 4},
        payloads=(
            PayloadRecord(kind="latents", tensor=TensorRecord("FP32", (1, 2)), content=content),
        ),
        route=("sampling",),
        labels={"a": "b"},
    )
    record = request.to_record()
    assert record["payloads"][0]["tensor"] == {"data_type": "FP32", "shape": [1, 2]}
    assert StageRequestRecord.from_record(record) == request
    event = JobEventRecord(
        job_id="j",
        request_id="r",
        sequence=3,
        at=datetime.now(UTC),
        state="FAILED",
        error=ErrorRecord("STAGE_FAILED", "ill"),
    )
    assert JobEventRecord.from_record(event.to_record()) == event
