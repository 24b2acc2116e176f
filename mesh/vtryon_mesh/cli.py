"""`vtryon mesh`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from vtryon.cli.console import PlainConsole
from vtryon.errors import SettingsError

app = typer.Typer(help="Render the mesh's configurations, and check them.", rich_markup_mode=None)
_LOOK_SECONDS = 1.0
_Description = Annotated[
    Path | None,
    typer.Option(
        "--description",
        help="Description of the mesh. Default: mesh.yaml of the package.",
        exists=True,
    ),
]


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="Output folder for envoy/ and istio/; replaced.")],
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

    from vtryon_mesh.certificates import Authority, make_certificates
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
            make_certificates(scratch, mesh, Authority.create())
            (scratch / "jwks.json").write_text(Issuer.create(mesh).jwks)
            for name, config in envoys(mesh).items():
                status.update(f"checking {name}")
                validate(write(config).replace(str(CERTIFICATES), folder))
    except SettingsError as error:
        raise _exit(error) from None
    PlainConsole().say(f"Envoy takes all {len(mesh.identities)} configurations")


@app.command()
def certificates(
    out: Annotated[
        Path, typer.Argument(help="Output folder for certificates, jwks.json and token.")
    ],
    description: _Description = None,
    tenant: Annotated[str, typer.Option(help="Tenant of the token.")] = "local",
    days: Annotated[
        float, typer.Option(min=0.00001, help="Lifetime of a service's certificate, in days.")
    ] = 7,
    authority: Annotated[
        Path | None,
        typer.Option(help="Folder of the private signing keys. Default: OUT/authority."),
    ] = None,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority",
            help="Replace the authority; every process that uses the folder must be restarted.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Keep running, and renew certificates and token at half of their lifetime.",
        ),
    ] = False,
) -> None:
    """Make certificates, token keys and a token for a mesh outside of Kubernetes.

    In a folder with certificates, the authority is kept and the certificates are renewed: running
    Envoys load the new ones without a restart. The authority's folder can sign for the whole mesh:
    share it with no other process.
    """
    from vtryon_mesh.description import DEFAULT_PATH, Mesh
    from vtryon_mesh.renewal import make

    try:
        mesh = Mesh.load(description or DEFAULT_PATH)
        renewal = make(
            out,
            mesh,
            kept=authority or out / "authority",
            days=days,
            tenant=tenant,
            new_authority=new_authority,
        )
    except SettingsError as error:
        raise _exit(error) from None
    console = PlainConsole()
    console.say(f"{out}: {len(mesh.identities)} identities, a token for {tenant}")
    while watch:
        time.sleep(_LOOK_SECONDS)
        renewal.renew_and_say(console.say)


def _exit(error: SettingsError) -> typer.Exit:
    PlainConsole(stderr=True).say_error(str(error))
    return typer.Exit(2)
