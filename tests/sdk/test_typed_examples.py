"""What a user copies passes a strict type checker: the README's Python blocks, and the examples."""

import re
import textwrap
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[2]
PROLOGUE = "import asyncio\nimport openai\nimport vtryon\n"


def readme_programs() -> list[str]:
    """The README's blocks as programs, each in a coroutine where it needs one."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [
        PROLOGUE + "async def main() -> None:\n" + textwrap.indent(block, "    ")
        for block in blocks
    ]


@pytest.mark.timeout(600)
def test_the_readme_and_the_examples_pass_mypy_strict(tmp_path: Path) -> None:
    files = sorted((ROOT / "sdk" / "examples").glob("*.py"))
    for number, program in enumerate(readme_programs()):
        path = tmp_path / f"readme_{number}.py"
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


def test_what_examples_and_readme_name_is_exported() -> None:
    import vtryon

    text = (ROOT / "README.md").read_text()
    text += "".join(path.read_text() for path in (ROOT / "sdk" / "examples").glob("*.py"))
    named = set(re.findall(r"\bvtryon\.([A-Z]\w+)", text))
    assert named <= set(vtryon.__all__)
    assert {"ResumePoint", "RetryPolicy", "SampleStart"} <= set(vtryon.__all__)
