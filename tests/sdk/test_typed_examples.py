"""The documents' Python blocks and the examples pass a strict type checker."""

import re
import textwrap
from pathlib import Path

import pytest
from mypy import api
from tests.support.documents import DOCUMENTS, python_blocks

ROOT = Path(__file__).parents[2]
PROLOGUE = "import asyncio\nimport openai\nimport vtryon\n"


def programs() -> list[str]:
    """The documents' blocks as programs, each in a coroutine where it needs one."""
    return [
        PROLOGUE + "async def main() -> None:\n" + textwrap.indent(block, "    ")
        for block in python_blocks()
    ]


@pytest.mark.timeout(600)
def test_the_documents_and_the_examples_pass_mypy_strict(tmp_path: Path) -> None:
    files = sorted((ROOT / "sdk" / "examples").glob("*.py"))
    for number, program in enumerate(programs()):
        path = tmp_path / f"document_{number}.py"
        path.write_text(program)
        files.append(path)
    config = tmp_path / "mypy.ini"
    config.write_text(
        f"[mypy]\nstrict = True\nmypy_path = {ROOT / 'sdk'}\nscripts_are_modules = True\n"
        "[mypy-grpc.*,google.rpc.*,aiokafka.*,fastavro.*]\nignore_missing_imports = True\n"
        "[mypy-vtryon.*]\nignore_errors = True\n"
    )
    cache = f"--cache-dir={tmp_path / 'cache'}"
    report, errors, status = api.run(["--config-file", str(config), cache, *map(str, files)])
    assert status == 0, report + errors
    assert len(files) >= 8


def test_what_examples_and_documents_name_is_exported() -> None:
    import vtryon

    text = "".join(path.read_text() for path in DOCUMENTS)
    text += "".join(path.read_text() for path in (ROOT / "sdk" / "examples").glob("*.py"))
    named = set(re.findall(r"\bvtryon\.([A-Z]\w+)", text))
    assert named <= set(vtryon.__all__)
    assert {"ResumePoint", "RetryPolicy", "SampleStart"} <= set(vtryon.__all__)
