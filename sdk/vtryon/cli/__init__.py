"""The `vtryon` command. `main` needs the extra `cli`; other packages add subcommands to it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or name the extra to install."""
    try:
        from vtryon.cli.app import run
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit("the vtryon command needs the extra `cli`: pip install 'vtryon[cli]'")
    run()
