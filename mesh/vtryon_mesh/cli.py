"""`vtryon mesh`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Render the mesh's configurations, and check them.")


@app.callback()
def mesh() -> None:
    """Render the mesh's configurations, and check them."""
