"""The command, and its subcommands: the entry points of the group `vtryon.commands`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

import vtryon
from vtryon import extras
from vtryon.cli.failures import report, report_unexpected
from vtryon.errors import SettingsError, VtryonError

app = typer.Typer(
    name="vtryon",
    help="Virtual try-on: two pictures and a sentence in, one picture out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
_HELP = {"--help", "--version"}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtryon {vtryon.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Apply the options of every subcommand."""


def load_commands(words: Sequence[str]) -> None:
    """Load the subcommand that is called, or all of them where none is, to list them."""
    known = {entry.name: entry for entry in entry_points(group="vtryon.commands")}
    called = words[0] if words else ""
    if called == "--version":
        return
    for name in [called] if called in known else sorted(known):
        _add(known[name])


def _add(entry: EntryPoint) -> None:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        _add_unavailable(entry.name, error)
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=entry.name)
    else:
        app.command(entry.name)(command)


def _add_unavailable(name: str, error: ModuleNotFoundError) -> None:
    """List a command whose packages are missing, with the command that installs them."""
    lacking = extras.missing(extras.needed([name])) or ["server"]
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    help_text = f"Not installed: {extras.install_command(lacking)}"
    app.command(name, help=help_text, context_settings=anything)(_unavailable(name, error))


def _unavailable(name: str, error: ModuleNotFoundError) -> Callable[[], None]:
    def command() -> None:
        raise error

    command.__name__ = name
    return command


def run() -> None:
    """Run the command line.

    Every failure ends as one line on stderr: exit code 2 for errors that the user can correct, 1
    for all others, 130 after Ctrl-C.
    """
    words = sys.argv[1:]
    sys.exit(_end(words, lambda: load_commands(words)) or run_command(words))


def run_command(words: list[str]) -> int:
    """Run one command line, and give its exit code."""

    def call() -> None:
        if not _HELP & set(words):
            extras.require(f"`vtryon {' '.join(_spoken(words))}`", extras.needed(words))
        app(args=words)

    return _end(words, call)


def _end(words: list[str], do: Callable[[], None]) -> int:
    """Run a part of a command line; report an error in one line, and return the exit code."""
    try:
        do()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _close_quietly()
    except VtryonError as error:
        return report(error)
    except ModuleNotFoundError as error:
        return report(_lacking(words, error))
    except Exception as error:
        return report_unexpected(error, words)
    return 0


def _spoken(words: list[str]) -> list[str]:
    """Give the words of a command line up to its first option."""
    options = [place for place, word in enumerate(words) if word.startswith("-")]
    return words[: options[0]] if options else words


def _lacking(words: list[str], error: ModuleNotFoundError) -> SettingsError:
    wanted = extras.missing(extras.needed(words)) or extras.needed(words)
    return SettingsError(
        f"`vtryon {' '.join(_spoken(words))}` needs the package {error.name}, which is not "
        f"installed: {extras.install_command(wanted)}"
    )


def _close_quietly() -> int:
    """End after a reader of our output has left, as `head` does."""
    sys.stdout = sys.stderr = None
    return 141
