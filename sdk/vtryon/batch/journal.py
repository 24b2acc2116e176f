"""Journal of a batch: one appended line per entry, so that an abrupt end loses at most one line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from vtryon.errors import SettingsError

NAME = ".vtryon-batch.jsonl"


@dataclass(frozen=True, slots=True)
class JournalLine:
    """Outcome of an entry: its key, and the file of its result or the error.

    Attributes:
        digests: of the model that each stage used.
        fits: how each picture was resized.
        unused_options: `field` and `reason` of each option that had no effect.
    """

    name: str
    key: str
    out: str = ""
    seed: int | None = None
    seconds: float = 0.0
    reason: str = ""
    message: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    fits: Sequence[Mapping[str, Any]] = ()
    unused_options: Sequence[Mapping[str, str]] = ()

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return not self.out


class Journal:
    """The journal lines of a results folder; the last line of a name is valid.

    Attributes:
        lines: by the name of the entry, including those of earlier runs.
        current: names with a line of this run: written, or found to be still valid.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self.lines: dict[str, JournalLine] = {}
        self.current: set[str] = set()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the journal of an earlier run, ignoring an incomplete line.

        Raises:
            SettingsError: the folder is not writable.
        """
        journal = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if journal._path.exists():
                journal._read(journal._path.read_text(encoding="utf-8"))
            with journal._path.open("a") as file:
                if file.tell() and not journal._path.read_bytes().endswith(b"\n"):
                    file.write("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"can't write to {folder}: {error}") from error
        return journal

    def _read(self, text: str) -> None:
        for raw in text.splitlines():
            try:
                line = JournalLine(**json.loads(raw))
            except (ValueError, TypeError):
                continue
            self.lines[line.name] = line

    def is_done(self, name: str, key: str) -> bool:
        """Whether the same entry has a result, and that is still there."""
        line = self.lines.get(name)
        return (
            line is not None
            and not line.failed
            and line.key == key
            and (self._folder / line.out).is_file()
        )

    def confirm(self, name: str) -> JournalLine:
        """Take an earlier line as that of this run."""
        self.current.add(name)
        return self.lines[name]

    def report(self, line: JournalLine) -> None:
        """Take a line into the report of this run; the file keeps the earlier one."""
        self.lines[line.name] = line
        self.current.add(line.name)

    def write(self, line: JournalLine) -> None:
        """Note how an entry went.

        Raises:
            SettingsError: the disk is full, or the folder is gone.
        """
        raw = (json.dumps(asdict(line)) + "\n").encode()
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(raw)
                os.fsync(file.fileno())
        except OSError as error:
            raise SettingsError(f"can't write to {self._folder}: {error.strerror}") from error
        self.report(line)
