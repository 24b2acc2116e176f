"""`vtryon mesh`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtryon.cli.console import PlainConsole
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
    PlainConsole().say(f"{out}: {len(written)} files")


@app.command()
def check(description: _Description = None) -> None:
    """Have Envoy read every configuration that the description makes."""
    import tempfile

    from vtryon_mesh.certificates import make_certificates
    from vtryon_mesh.description import DEFAULT_PATH, Mesh
    from vtryon_mesh.documents import write
    from vtryon_mesh.local.tokens import Issuer
    from vtryon_mesh.render import CERTIFICATES, envoys
    from vtryon_mesh.validate import validate

    console = PlainConsole(stderr=True)
    try:
        mesh = Mesh.load(description or DEFAULT_PATH)
        with tempfile.TemporaryDirectory() as folder, console.status("checking") as status:
            # Envoy reads the files that a configuration names.
            scratch = Path(folder)
            make_certificates(scratch, mesh)
            (scratch / "jwks.json").write_text(Issuer.create(mesh).jwks)
            for name, config in envoys(mesh).items():
                status.update(f"checking {name}")
                validate(write(config).replace(str(CERTIFICATES), folder))
    except SettingsError as error:
        raise _exit(error) from None
    PlainConsole().say(f"Envoy takes all {len(mesh.identities)} configurations")


@app.command()
def certificates(
    out: Annotated[Path, typer.Argument(help="Folder to write; what is there is replaced.")],
    description: _Description = None,
    tenant: Annotated[str, typer.Option(help="Whom the token is for.")] = "local",
) -> None:
    """Make what a mesh outside of Kubernetes needs: certificates, keys for tokens, and a token.

    The authority's and the tokens' private keys are thrown away: for others, make all anew.
    """
    from vtryon_mesh.certificates import make_certificates
    from vtryon_mesh.description import DEFAULT_PATH, Mesh
    from vtryon_mesh.local.tokens import Issuer

    try:
        mesh = Mesh.load(description or DEFAULT_PATH)
    except SettingsError as error:
        raise _exit(error) from None
    make_certificates(out, mesh)
    issuer = Issuer.create(mesh)
    (out / "jwks.json").write_text(issuer.jwks)
    issuer.write_token(out / "token", tenant)
    PlainConsole().say(f"{out}: {len(mesh.identities)} identities, a token for {tenant}")


def _exit(error: SettingsError) -> typer.Exit:
    PlainConsole(stderr=True).say_error(str(error))
    return typer.Exit(1)
