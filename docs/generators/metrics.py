"""The page of metrics, from the calls in the source that register them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from generators.tables import cell

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("sdk/vtryon", "services/vtryon_services", "mesh/vtryon_mesh")
# A method of OpenTelemetry's meter, or of `Watched`, and the instrument that it registers.
_KINDS = {
    "create_counter": "counter",
    "create_up_down_counter": "up-down counter",
    "create_gauge": "gauge",
    "create_histogram": "histogram",
    "counter": "counter",
    "gauge": "gauge",
}
_HEAD = """# Metrics

Names are those of OpenTelemetry. Prometheus replaces dots with underscores and adds the unit and,
for a counter, `_total`. The [observability guide](../guides/observability.md) describes
exporters.

| metric | instrument | unit | description |
|---|---|---|---|
"""


def page() -> str:
    """Write a row per metric."""
    modules = [path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")]
    rows = {row for path in modules for row in _rows(path)}
    return _HEAD + "".join(sorted(rows))


def _rows(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind, texts = _KINDS.get(node.func.attr), [_text(one) for one in node.args]
            if kind and texts and texts[0].startswith(("vtryon.", "rpc.", "http.")):
                named = {one.arg: _text(one.value) for one in node.keywords}
                about = named.get("description") or next((one for one in texts[1:] if one), "")
                yield f"| `{texts[0]}` | {kind} | {named.get('unit', '')} | {cell(about)} |\n"


def _text(node: ast.expr) -> str:
    """Give the value of a constant string, and nothing for other expressions."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
