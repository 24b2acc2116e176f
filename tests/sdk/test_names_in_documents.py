"""The documents name tests and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = (ROOT / "docs" / "reference" / "faults.md").read_text()
DOCUMENTS = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "ARCHITECTURE.md"],
)
FOLDERS = ("docs", "helm", "loadtests", "mesh", "protos", "sdk", "services", "tests")
FILES = [
    "/" + str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*"), *(one for name in FOLDERS for one in (ROOT / name).rglob("*")))
]
FILE = re.compile(
    rf"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|proto)|(?:{'|'.join(FOLDERS)})/[\w/.-]+)`"
)


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", FAULTS))
    assert named - {*re.findall(r"def (test_\w+)\(", text)} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    named = {name.rstrip("/") for name in FILE.findall(path.read_text())}
    assert [
        name for name in named if not any(f"{one}/".endswith(f"/{name}/") for one in FILES)
    ] == []
