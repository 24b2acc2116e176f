"""`vtryon triton`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from vtryon.cli.console import PlainConsole

app = typer.Typer(help="Run a Triton server on this machine.", rich_markup_mode=None)


@app.callback()
def triton() -> None:
    """Run a Triton server on this machine."""


@app.command()
def up(
    repository: Annotated[Path, typer.Argument(help="Model repository.", exists=True)],
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 uses a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 uses a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 uses a free one.")] = 8002,
    timeout: Annotated[
        float, typer.Option(help="Timeout in seconds for the models to load.")
    ] = 300,
    cache_bytes: Annotated[
        int,
        typer.Option(
            help="Size of the response cache in bytes, for models exported with it; 0: none.", min=0
        ),
    ] = 0,
    log: Annotated[Path | None, typer.Option(help="Log file of the server.")] = None,
) -> None:
    """Serve a model repository on the loopback address, until interrupted.

    Uses the tritonserver on PATH, or the one that `make triton` installs into .triton. Its
    leftovers in /dev/shm are deleted at the end.
    """
    from vtryon.errors import SettingsError
    from vtryon_services.triton.server import serve

    console = PlainConsole(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with serve(
            repository,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            log=log,
            cache_bytes=cache_bytes,
        ) as running:
            with console.status("loading models"):
                running.wait_until_ready(timeout)
            names = sorted(path.name for path in repository.iterdir() if path.is_dir())
            console.say(f"ready: {', '.join(names)}")
            console.say(f"address: grpc {running.grpc}, http {running.http}")
            while running.process.poll() is None:
                time.sleep(0.5)
            console.say("tritonserver has ended", style="red")
            raise typer.Exit(1)
    except KeyboardInterrupt:
        console.print("stopped")
    except SettingsError as error:
        console.say_error(str(error))
        raise typer.Exit(2) from None
