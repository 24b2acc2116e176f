"""`docs/reference/faults.md` names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "faults.md").read_text()


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert named - {*re.findall(r"def (test_\w+)\(", text)} == set()


def test_every_file_that_the_table_of_faults_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+|[\w/]*test_\w+\.py)`", TEXT))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*")}
    assert [
        one
        for one in named
        if not any(f"/{path}".endswith(f"/{one.rstrip('/')}") for path in there)
    ] == []
