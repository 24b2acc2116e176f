"""`vtryon mesh`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vtryon.errors import SettingsError

app = typer.Typer(help="Render the mesh's configurations, and check them.")
_Description = Annotated[
    Path | None, typer.Option("--description", help="Of the mesh; else mesh.yaml.", exists=True)
]


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="Folder for envoy/ and istio/, made anew.")],
    description: _Description = None,
) -> None:
    """Write Envoy's configurations for containers, and Istio's manifests (sidecar and ambient)."""
    from vtryon_mesh.description import DEFAULT_PATH, Mesh
    from vtryon_mesh.render import write_all

    try:
        written = write_all(Mesh.load(description or DEFAULT_PATH), out)
    except SettingsError as error:
        raise _exit(error) from None
    Console().print(f"{out}: {len(written)} files", highlight=False)


@app.command()
def check(description: _Description = None) -> None:
    """Have Envoy read every configuration that the description makes."""
    import tempfile

    from vtryon_mesh.certificates import make_certificates
    from vtryon_mesh.description import DEFAULT_PATH, Mesh
    from vtryon_mesh.local.tokens import Issuer
    from vtryon_mesh.render import envoys
    from vtryon_mesh.validate import validate, write

    console = Console(stderr=True)
    try:
        mesh = Mesh.load(description or DEFAULT_PATH)
        with tempfile.TemporaryDirectory() as folder, console.status("checking") as status:
            # Envoy reads the files that a configuration names.
            scratch = Path(folder)
            make_certificates(scratch, [(name, mesh.identity(name)) for name in mesh.identities])
            (scratch / "jwks.json").write_text(Issuer.create(mesh).jwks)
            for name, config in envoys(mesh).items():
                status.update(f"checking {name}")
                text = write(config).replace("/etc/vtryon/certificates", folder)
                validate(text.replace("/etc/vtryon/jwks.json", f"{folder}/jwks.json"))
    except SettingsError as error:
        raise _exit(error) from None
    Console().print(f"Envoy takes all {len(mesh.identities)} configurations", highlight=False)


def _exit(error: SettingsError) -> typer.Exit:
    Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
    return typer.Exit(1)
