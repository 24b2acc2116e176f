"""Generate the pages of docs/reference that are made from code; `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from generators import commands, documents, metrics, options, protos, settings

FOLDER = Path(__file__).parent / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings.page,
    "errors.md": protos.errors_page,
    "protocol.md": protos.protocol_page,
    "cli.md": commands.page,
    "rest.md": documents.rest_page,
    "topics.md": documents.topics_page,
    "metrics.md": metrics.page,
    "options.md": options.page,
}


def main() -> int:
    """Write the pages, or name those that are not current."""
    stale = []
    for name, page in PAGES.items():
        path, fresh = FOLDER / name, page().rstrip() + "\n"
        if "--check" not in sys.argv:
            path.write_text(fresh)
        elif not path.exists() or path.read_text() != fresh:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not current, run `make generate`: {', '.join(stale)}\n")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
