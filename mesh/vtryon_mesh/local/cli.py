"""`vtryon up`."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vtryon.cli.console import PlainConsole, whole_table
from vtryon.errors import SettingsError
from vtryon_mesh.certificates import LEAF_DAYS
from vtryon_mesh.description import DEFAULT_PATH, Mesh
from vtryon_mesh.envoy.access import Keys, RemoteKeys
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.local.folder import check, claim
from vtryon_mesh.local.layout import MeshLayout, UpOptions
from vtryon_mesh.local.planning import lay_out
from vtryon_mesh.local.services import choose
from vtryon_mesh.local.supervise import Status, Supervisor, refuse_taken_ports, supervised
from vtryon_mesh.local.tokens import Issuer
from vtryon_mesh.renewal import Renewal

_LOOK_SECONDS = 1.0
_BACKENDS = ("torch", "triton", "scripted")


_Stages = Annotated[
    str,
    typer.Option(help="Services to start, separated by commas. Default: all installed ones."),
]
_Replicas = Annotated[
    list[str] | None, typer.Option(help="Number of replicas, as in sampling=2; repeatable.")
]
_Canary = Annotated[
    list[str] | None,
    typer.Option(
        help="Percent of a service's calls for its last replica, as in sampling=5; repeatable."
    ),
]
_Backend = Annotated[
    str,
    typer.Option(
        envvar="VTRYON_BACKEND",
        help="Backend of all stages: torch, triton (starts a server) or scripted. "
        "VTRYON_SAMPLING_BACKEND and the like take precedence for their stage.",
    ),
]
_Mtls = Annotated[
    bool,
    typer.Option(
        "--mtls", help="An Envoy sidecar for every service, mutual TLS, and TLS at the edge."
    ),
]
_Tokens = Annotated[
    bool,
    typer.Option(
        "--tokens",
        help="Require a bearer token at the edge; one is written, and renewed before it "
        "expires. Without this, tokens are required only if the description has a "
        "jwks_uri.",
    ),
]
_CertificateDays = Annotated[
    float,
    typer.Option(
        min=0.0001,
        help="Lifetime of certificates in days; renewed at half of it. Requires --mtls.",
    ),
]
_Zones = Annotated[
    int,
    typer.Option(min=1, max=9, help="Number of zones to spread replicas over; requires --mtls."),
]
_Kafka = Annotated[
    bool,
    typer.Option(
        "--kafka",
        help="Start the Kafka bridge as well, with a broker in memory and a schema registry.",
    ),
]
_FreePorts = Annotated[
    bool, typer.Option("--free-ports", help="Use free ports instead of those of mesh.yaml.")
]
_Otlp = Annotated[
    str | None, typer.Option(help="host:port of an OTLP gRPC receiver for spans and metrics.")
]
_Folder = Annotated[
    Path,
    typer.Option(
        help="Folder of configurations, certificates and logs, replaced at each start, and "
        "of the jobs' data, which are kept. The broker of --kafka stores nothing on "
        "disk."
    ),
]
_Description = Annotated[
    Path,
    typer.Option(help="Description of the mesh. Default: mesh.yaml of the package.", exists=True),
]


def up(
    stages: _Stages = "",
    replicas: _Replicas = None,
    canary: _Canary = None,
    backend: _Backend = "torch",
    mtls: _Mtls = False,
    tokens: _Tokens = False,
    certificate_days: _CertificateDays = LEAF_DAYS,
    zones: _Zones = 1,
    kafka: _Kafka = False,
    free_ports: _FreePorts = False,
    otlp: _Otlp = None,
    folder: _Folder = Path(".mesh"),
    description: _Description = DEFAULT_PATH,
) -> None:
    """Run the whole mesh on this machine: an Envoy at the edge, every service in its own process.

    Shows every process, its health and where it listens; one that dies is started anew, later each
    time. Ctrl-C drains everything, a second one ends everything at once. What each says is in
    FOLDER/logs. Other settings of the services are variables, as for `vtryon serve`; one that sets
    an address that this command chooses is refused.
    """
    console = PlainConsole(stderr=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        mesh = Mesh.load(description)
        issuer = Issuer.create(mesh) if tokens else None
        chosen = choose(_names(stages), mesh, _backend(backend), kafka=kafka)
        if chosen.left_out:
            names = ", ".join(chosen.left_out)
            console.say(f"not started: {names} ({chosen.install})")
        wanted = UpOptions(
            services=chosen.services,
            replicas=_counts("--replicas", replicas or [], 9),
            canaries=_counts("--canary", canary or [], 99),
            backend=_backend(backend),  # type: ignore[arg-type]
            zones=zones,
            mtls=mtls,
            jwks=_keys(mesh, issuer),
            certificate_days=certificate_days,
            free_ports=free_ports,
            otlp=_address(otlp) if otlp else None,
        )
        check(folder)
        layout = lay_out(mesh, wanted, folder)
        refuse_taken_ports(layout)
        claim(folder)
        if backend == "triton":
            _export_models(layout.folder, console)
        token = layout.folder / "token"
        if issuer:
            issuer.write_token(token, "local")
        renewal = Renewal(
            mesh, layout.certificates, layout.authority, issuer, token, certificate_days
        )
        _run(layout, renewal, console)
    except SettingsError as error:
        console.say_error(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.say("stopped")


def _keys(mesh: Mesh, issuer: Issuer | None) -> Keys | None:
    """Return the keys that sign accepted tokens: our own, or an identity provider's."""
    if issuer is not None:
        return issuer.jwks
    uri = mesh.edge.jwt.jwks_uri
    return RemoteKeys(uri) if uri else None


def _run(layout: MeshLayout, renewal: Renewal, console: PlainConsole) -> None:
    with supervised(layout) as supervisor:
        try:
            _show(layout, supervisor, renewal, console)
        finally:
            console.say("draining …")


def _show(
    layout: MeshLayout, supervisor: Supervisor, renewal: Renewal, console: PlainConsole
) -> None:
    """Show the state until interrupted: a live table, or lines without a terminal.

    Meanwhile certificates and the token are renewed before they expire.
    """
    announced = False
    known: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while supervisor.alive:
            statuses = supervisor.statuses()
            if console.is_terminal:
                live.update(_table(statuses), refresh=True)
            else:
                _tell_changes(statuses, known, console)
            if not announced and all(one.healthy for one in statuses):
                announced = True
                _announce(layout, console)
            renewal.renew_and_say(console.say)
            time.sleep(_LOOK_SECONDS)
    raise SettingsError(f"supervisord has ended: see {layout.folder / 'logs' / 'supervisord.log'}")


def _announce(layout: MeshLayout, console: PlainConsole) -> None:
    console.say(f"ready: {len(layout.processes)} processes")
    if layout.kafka:
        pairs = (f"{name}={shlex.quote(value)}" for name, value in layout.kafka.items())
        console.say(f"export {' '.join(pairs)}")
    if layout.edge_address is None:
        return
    options = [f"--endpoint {layout.edge_address}"]
    if layout.authority:
        options.append(f"--tls-ca {_short(layout.certificates / 'ca.crt')}")
    token = layout.folder / "token"
    prefix = f"VTRYON_TOKEN=$(cat {_short(token)}) " if token.exists() else ""
    command = f"{prefix}vtryon try-on person.png garment.png -o result.png {' '.join(options)}"
    console.say(f"try: {command}")
    console.say(f"address: {layout.edge_address}")


def _tell_changes(statuses: Sequence[Status], known: dict[str, str], console: PlainConsole) -> None:
    for one in statuses:
        said = f"{one.state.lower()}{', healthy' if one.healthy else ''}"
        if known.get(one.process.name) != said:
            known[one.process.name] = said
            console.say(f"{one.process.name}: {said}")


def _table(statuses: Sequence[Status]) -> Table:
    columns = ("process", "state", "at", "pid", "up", "restarts")
    table = whole_table(*columns, wrapped=columns)
    for one in statuses:
        colour = "green" if one.healthy else "yellow" if one.state == "RUNNING" else "red"
        state = "healthy" if one.healthy else one.state.lower()
        table.add_row(
            one.process.name,
            Text(state, colour),
            ", ".join(map(str, one.process.listens)),
            str(one.pid or ""),
            f"{one.up_seconds:.0f} s",
            str(one.restarts or ""),
        )
    return table


def _export_models(folder: Path, console: PlainConsole) -> None:
    command = (sys.executable, "-m", "vtryon", "models", "export-triton")
    with console.status("exporting models"):
        done = subprocess.run(  # noqa: S603
            [*command, str(folder / "model_repository")],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SettingsError(f"the models can't be exported: {done.stderr.strip()}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _counts(option: str, words: Sequence[str], most: int) -> dict[str, int]:
    counts = {}
    for word in words:
        name, _, count = word.partition("=")
        if not count.isdigit() or not 1 <= int(count) <= most:
            raise SettingsError(f"{option} {word}: it takes NAME=1 to NAME={most}")
        counts[name] = int(count)
    return counts


def _backend(name: str) -> str:
    if name not in _BACKENDS:
        raise SettingsError(f"--backend {name}: it takes {', '.join(_BACKENDS)}")
    return name


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise SettingsError(f"--otlp {text}: it takes host:port")
    return Address(host, int(port))


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
