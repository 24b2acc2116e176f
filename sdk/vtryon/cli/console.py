"""The console of every command: values are shown as they are.

Paths, prompts, names and messages come from outside. Rich would read `[bold]` or `:smile:` in them
as markup, and a terminal would run their escape sequences; here both are text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import TextColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainConsole(Console):
    """A console without markup, emoji codes, highlighting and control characters in values."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a value; Rich calls this for each string that it prints."""
        return super().render_str(printable(text), **options)

    def status(self, status: Any, **options: Any) -> Status:
        """Show a spinner with a text while a block runs."""
        return _PlainStatus(_plain(status), console=self, **options)

    def say(self, message: str, style: str = "") -> None:
        """Print one message that only the terminal wraps, so that it can be copied."""
        self.print(message, style=style, soft_wrap=True)

    def say_error(self, message: str) -> None:
        """Print an error."""
        self.print(Text.assemble(("error:", "red"), " ", printable(message)), soft_wrap=True)

    def show_table(self, table: Table) -> None:
        """Print a table of `whole_table`; on a narrower terminal its rows run on."""
        wide = self.options.update(max_width=10_000)
        for column in table.columns:
            sizes = [Measurement.get(self, wide, one) for one in (column.header, *column.cells)]
            column.min_width = max(
                size.maximum if column.no_wrap else size.minimum for size in sizes
            )
        needed = table.__rich_measure__(self, wide).minimum
        width, self.width = self.width, max(self.width, needed)
        try:
            self.print(table, crop=False)
        finally:
            self.width = width


class _PlainStatus(Status):
    def update(self, status: Any = None, **options: Any) -> None:
        super().update(_plain(status), **options)


def _plain(value: Any) -> Any:
    return Text(printable(value)) if isinstance(value, str) else value


def printable(text: str) -> str:
    """Replace control characters, which would move the cursor or change the terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def text_column(text_format: str, style: str = "none") -> TextColumn:
    """Make a progress bar's column of text that is shown as it is."""
    return TextColumn(text_format, style=style, markup=False)


def whole_table(*columns: str, wrapped: Sequence[str] = ()) -> Table:
    """Create a table whose values are never truncated, so that identifiers can be copied.

    Args:
        columns: the headings.
        wrapped: columns whose text may wrap over several lines.
    """
    table = Table(box=None)
    for name in columns:
        table.add_column(name, no_wrap=name not in wrapped, overflow="fold")
    return table
