"""The documents' shell blocks, with the extras that each installs, and their Python blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_INSTALL = re.compile(r"pip install 'vtryon\[([a-z,]+)\]'")


@dataclass(frozen=True)
class Block:
    """A shell block; `extras` are those of its own `pip install` line."""

    document: str
    extras: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        words = re.findall(r"[a-z]+", " ".join(self.lines).partition("vtryon")[2])
        return "-".join([self.document, *self.extras, *words[:2]])

    @property
    def commands(self) -> list[list[str]]:
        """The words of each `vtryon` command, without comments."""
        text = "\n".join(line.partition("#")[0] for line in self.lines).replace("\\\n", " ")
        found = re.findall(r"(?:^|[\s;(])vtryon ([^;&)\n]*)", text)
        return [command.split() for command in found]


def shell_blocks() -> list[Block]:
    """Give the blocks that run `vtryon`, or call a server of it."""
    blocks = []
    for path, block in _blocks("sh"):
        installs = _INSTALL.search(block)
        lines = tuple(line for line in block.splitlines() if line and not _INSTALL.match(line))
        if any(re.search(r"^(vtryon|VTRYON_|buf|ID=)", line) for line in lines):
            extras = tuple(installs[1].split(",")) if installs else ()
            blocks.append(Block(path.stem.lower(), extras, lines))
    return blocks


def python_blocks() -> list[str]:
    """Give the distinct Python blocks."""
    return list(dict.fromkeys(block for _, block in _blocks("python")))


def _blocks(language: str) -> list[tuple[Path, str]]:
    return [
        (path, block)
        for path in DOCUMENTS
        for block in re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)
    ]
