"""The catalogue of services, and that nothing else lists them."""

from __future__ import annotations

import ast
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtryon.catalog import BRIDGES, CATALOG, EMBEDDABLE, ServiceEntry
from vtryon.types import Stage

ROOT = Path(__file__).parents[2]
FOLDERS = ("sdk/vtryon", "services/vtryon_services", "mesh/vtryon_mesh")
STAGES = tuple(Stage)
# What these spell the same as a service is another thing.
OTHER_THINGS = {
    "sdk/vtryon/types.py": (STAGES, "the stages, which the catalogue names by"),
    "sdk/vtryon/extras.py": (("jobs", "kafka"), "extras and commands"),
    "sdk/vtryon/cli/stage.py": (("sampling",), "the title of a progress bar"),
    "sdk/vtryon/workflow/meaning.py": (("decoding", "sampling"), "parts of a graph"),
    "services/vtryon_services/jobs/tables.py": (("jobs",), "a table of SQL"),
    "services/vtryon_services/jobs/leases.py": (("jobs",), "a column of SQL"),
    "services/vtryon_services/triton/contract.py": (("decoding", "sampling"), "models of Triton"),
    "services/vtryon_services/triton/export.py": (("sampling",), "a module of a model"),
    "services/vtryon_services/bridges/kafka/settings.py": (("jobs", "kafka"), "topology, prefix"),
    "services/vtryon_services/bridges/kafka/bridge.py": (("kafka",), "a topology"),
    "services/vtryon_services/bridges/kafka/asyncapi.py": (("kafka",), "a protocol of AsyncAPI"),
    "services/vtryon_services/bridges/kafka/consumer.py": (("kafka",), "OpenTelemetry's system"),
    "services/vtryon_services/bridges/kafka/schemas.py": (("kafka",), "a folder"),
    "services/vtryon_services/bridges/rest/jobs.py": (("jobs",), "a tag of OpenAPI"),
    "services/vtryon_services/checks.py": (("kafka",), "the title of a finding"),
    "mesh/vtryon_mesh/local/planning.py": (("jobs", "kafka"), "a folder, the broker's command"),
}


@pytest.mark.parametrize("entry", CATALOG.values(), ids=[*CATALOG])
def test_settings_and_factory_are_there_and_settings_know_name_and_address(
    entry: ServiceEntry,
) -> None:
    settings = pkgutil.resolve_name(entry.settings)
    assert settings.service == entry.name
    assert settings.model_fields["listen"].default == entry.address
    assert callable(pkgutil.resolve_name(entry.factory))


def test_names_ports_and_kinds_are_each_of_one_service() -> None:
    assert {*Stage} < {*CATALOG}
    assert len({entry.port for entry in CATALOG.values()}) == len(CATALOG)
    assert sorted((*EMBEDDABLE, *BRIDGES)) == sorted(CATALOG)


def test_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for entry in CATALOG.values():
        assert entry.extra in {"", *declared["optional-dependencies"]}


def test_no_other_module_spells_the_name_of_a_service() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(names)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "catalog.py" and "migrations" not in path.parts and "v1" not in path.parts
        if (names := set(_names_in(path)))
    }
    assert found == {path: sorted(names) for path, (names, _) in OTHER_THINGS.items()}


def _names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value in CATALOG:
            yield str(node.value)
