"""Measure the house: the words of its docstrings, its names, the length of its functions.

    python -m tests.house [FOLDER …] [--worst]

Counts over the product's hand-written code. With folders, over those alone; with `--worst`, lists
what the figures are made of. Exits with 1 where a figure is over its bound.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = (
    "sdk/vtryon",
    "sdk/examples",
    "services/vtryon_services",
    "mesh/vtryon_mesh",
    "loadtests/vtryon_loadtests",
)
GENERATED = ("sdk/vtryon/v1", "services/vtryon_services/jobs/migrations")
# Pronouns and verbs that stand where a technical noun would say more.
DIALECT = re.compile(
    r"\b(what|whose|whom|nobody|somebody|whoever|told|said|behind|beside|besides|takes|given|"
    r"others|where there is|is none)\b",
    re.IGNORECASE,
)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
# One that guidance and its reports depend on, and one that the sampler alone uses.
SAMPLING_FIELDS = ("true_cfg_scale", "guidance_rescale")
ARGUMENT = re.compile(r"^\s+\w+:", re.MULTILINE)  # its name is no prose
BOUNDS = {
    "dialect words per 1,000 of docstrings": 2.7,
    "class names in two modules": 0,
    "public names without a docstring": 0,
    "lines of a function, 90th percentile": 20,
    "lines of a function, largest": 80,
    "lines of a module, largest": 400,
    "modules that name true_cfg_scale": 7,
    "modules that name guidance_rescale": 4,
}


@dataclass(slots=True)
class House:
    """What was counted."""

    words: Counter[str] = field(default_factory=Counter)
    dialect: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    classes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    undocumented: list[str] = field(default_factory=list)
    functions: dict[str, int] = field(default_factory=dict)
    modules: dict[str, int] = field(default_factory=dict)
    sampling: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, float]:
        """Give each figure by its name."""
        dialect = sum(len(found) for found in self.dialect.values())
        lengths = sorted(self.functions.values())
        return {
            "dialect words per 1,000 of docstrings": 1000 * dialect / self.words.total(),
            "class names in two modules": sum(len(at) > 1 for at in self.classes.values()),
            "public names without a docstring": len(self.undocumented),
            "lines of a function, 90th percentile": statistics.quantiles(lengths, n=10)[-1],
            "lines of a function, largest": lengths[-1],
            "lines of a module, largest": max(self.modules.values()),
            **{f"modules that name {name}": self.sampling[name] for name in SAMPLING_FIELDS},
        }


def modules(folders: Sequence[Path]) -> Iterator[Path]:
    """Give the hand-written modules of folders, or single modules."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
            if not any(path.is_relative_to(ROOT / generated) for generated in GENERATED):
                yield path


def count(folders: Sequence[Path]) -> House:
    """Read and count all modules."""
    house = House()
    for path in modules(folders):
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        house.modules[name] = text.count("\n")
        house.sampling.update(one for one in SAMPLING_FIELDS if one in text)
        tree = ast.parse(text)
        for node in ast.walk(tree):
            _count_node(node, name, house)
        house.undocumented += [f"{name}:{own}" for own in _undocumented(tree)]
    return house


def _undocumented(body: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Name public classes, functions and methods without a docstring."""
    for node in body.body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _undocumented(node)


def _count_node(node: ast.AST, name: str, house: House) -> None:
    if not isinstance(node, (ast.Module, *DEFINITIONS)):
        return
    own = getattr(node, "name", "")
    at = f"{name}:{getattr(node, 'lineno', 1)}"
    docstring = ARGUMENT.sub("", ast.get_docstring(node) or "")
    house.words[name] += len(WORD.findall(docstring))
    house.dialect[at] += DIALECT.findall(docstring)
    if isinstance(node, ast.ClassDef) and node.col_offset == 0:
        house.classes[own].append(at)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        house.functions[f"{at} {own}"] = (node.end_lineno or node.lineno) - node.lineno + 1


def show_worst(house: House) -> None:
    """List what the figures are made of."""
    for at, found in sorted(house.dialect.items()):
        if found:
            print(f"{at}: {', '.join(found)}")
    for own, at in sorted(house.classes.items()):
        if len(at) > 1:
            print(f"class {own}: {', '.join(at)}")
    for own in house.undocumented:
        print(f"no docstring: {own}")
    for own, length in sorted(house.functions.items(), key=lambda one: -one[1])[:10]:
        print(f"{length} lines: {own}")


def main() -> int:
    """Count, print, and compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--worst", action="store_true", help="list what the figures are made of")
    given = parser.parse_args()
    folders = [path.resolve() for path in given.folders] or [ROOT / name for name in PRODUCT]
    house = count(folders)
    if given.worst:
        show_worst(house)
    over = 0
    for name, figure in house.figures().items():
        verdict = "" if figure <= BOUNDS[name] else f"  over {BOUNDS[name]:g}"
        over += bool(verdict)
        print(f"{figure:8.1f}  {name}{verdict}")
    return int(bool(over) and not given.folders)


if __name__ == "__main__":
    sys.exit(main())
