"""Clean environments with the wheel and some of its extras, as a user would make them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Nothing of the shell that runs the tests: no PYTHONPATH, no settings.
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VTRYON_"))
}
_UV = Path(sys.executable).with_name("uv")


def run(*command: object, cwd: Path, timeout: float = 600) -> str:
    """Run a command that must succeed; gives what it printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=CLEAN, timeout=timeout
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


def build_wheel(out: Path) -> Path:
    """Build the distribution's wheel."""
    run(_UV, "build", "--quiet", "--wheel", "--out-dir", out, ROOT, cwd=out)
    return next(out.glob("vtryon-*.whl"))


def make_environment(folder: Path, requirement: str) -> Path:
    """Make an environment with one requirement and nothing else; gives its bin folder."""
    run(_UV, "venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    links = os.environ.get("PIP_FIND_LINKS")
    where = ("--find-links", links) if links else ()
    constraints = ("--constraint", ROOT / "constraints.txt")
    install = (_UV, "pip", "install", "--quiet", "--python", python, *where, *constraints)
    run(*install, requirement, cwd=folder)
    return folder / "bin"
