"""`vtryon stage`: each stage alone, from files to files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vtryon.cli.connection import (
    CheckpointOption,
    Connection,
    EndpointOption,
    TlsCaOption,
    TlsOption,
)
from vtryon.cli.console import PlainConsole
from vtryon.cli.files import check_writable, load_tensors, save_picture, save_tensors
from vtryon.cli.options import PREVIEWS, SAMPLING, preview_policy, with_options
from vtryon.cli.progress import describe_unused
from vtryon.cli.try_on import exit_code_of, format_of, report_failure
from vtryon.client import Client
from vtryon.errors import VtryonError
from vtryon.events import Accepted, Preview, StepFinished
from vtryon.files import strict
from vtryon.files.tensors import conditioning, name_embeddings, name_latents, only_latents
from vtryon.options import DEFAULT_PROMPT
from vtryon.types import SampleStart

R = TypeVar("R")
app = typer.Typer(
    help="Run a single stage, with tensors in .safetensors files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Out = Annotated[Path, typer.Option("--out", "-o", help="Output file, .safetensors.")]
_Pictures = Annotated[
    list[Path], typer.Argument(help="Picture: PNG, JPEG or WebP; the person first.")
]


@app.command()
@with_options("profile", "resize")
def encode_image(
    pictures: _Pictures,
    out: _Out,
    options: Mapping[str, Any],
    endpoint: EndpointOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Encode pictures: tensors `latents_1`, `latents_2` and so on."""

    async def work(client: Client) -> None:
        found = await client.latent_encoder.encode(pictures, **strict.arguments(options))
        save_tensors(name_latents(found), out, {})

    _run(work, out, Connection(endpoint, tls, tls_ca, checkpoint))


@app.command()
@with_options("prompt", "negative_prompt", "profile", "resize")
def encode_text(
    pictures: _Pictures,
    out: _Out,
    options: Mapping[str, Any],
    endpoint: EndpointOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Encode a prompt: tensors `embeddings` and, with a negative prompt, `negative_embeddings`."""

    async def work(client: Client) -> None:
        chosen = {"prompt": DEFAULT_PROMPT, **strict.arguments(options)}
        found = await client.text_encoder.encode(chosen.pop("prompt"), pictures, **chosen)
        save_tensors(name_embeddings(found), out, {})

    _run(work, out, Connection(endpoint, tls, tls_ca, checkpoint))


@app.command()
@with_options(*SAMPLING, *PREVIEWS)
def sample(
    embeddings: Annotated[Path, typer.Argument(help="File of `encode-text`.")],
    latents: Annotated[Path, typer.Argument(help="File of `encode-image`.")],
    out: _Out,
    options: dict[str, Any],
    previews: Annotated[
        Path | None, typer.Option(help="Output folder for a preview after each step.")
    ] = None,
    endpoint: EndpointOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Denoise: the tensor `latents`, with seed and noise levels in the file's header."""

    async def work(client: Client) -> None:
        policy = preview_policy(previews, options)
        texts, pictures = load_tensors(embeddings), load_tensors(latents)
        given = conditioning(texts, pictures)
        _, rows, columns = given.references[0].spec.shape
        chosen = {"width": 8 * columns, "height": 8 * rows, **strict.arguments(options)}
        start = SampleStart(previews=policy, **chosen)
        facts: dict[str, str] = {}
        run = client.sampling.sample(start, given)
        with PlainConsole(stderr=True).status("sampling") as status:
            async for event in run:
                match event:
                    case Accepted(seed=drawn, sigmas=sigmas, unused_options=unused):
                        for one in unused:
                            status.console.print(f"note: {describe_unused(one)}", soft_wrap=True)
                        facts |= {"seed": str(drawn), "sigmas": ", ".join(map(str, sigmas))}
                    case StepFinished(step, of):
                        status.update(f"step {step} of {of}")
                    case Preview(step, _, picture) if previews and picture:
                        save_picture(picture, previews / f"step-{step:03d}.png")
                    case _:
                        pass
        save_tensors({"latents": await run}, out, facts)

    _run(work, out, Connection(endpoint, tls, tls_ca, checkpoint))


@app.command()
def decode(
    latents: Annotated[Path, typer.Argument(help="File of `sample`, or of `encode-image`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .png, .jpg or .webp.")],
    quality: Annotated[int | None, typer.Option(help="Quality of JPEG and WebP, 1 to 100.")] = None,
    endpoint: EndpointOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Decode the latents of one picture."""

    async def work(client: Client) -> None:
        picture = await client.decoding.decode(
            only_latents(load_tensors(latents)), format=format_of(out), quality=quality
        )
        save_picture(picture, out)

    _run(work, out, Connection(endpoint, tls, tls_ca, checkpoint))


def _run(work: Callable[[Client], Awaitable[None]], out: Path, connection: Connection) -> None:
    async def connected() -> None:
        check_writable(out)
        async with connection.client() as client:
            await work(client)

    console = PlainConsole(stderr=True)
    try:
        asyncio.run(connected())
    except VtryonError as error:
        report_failure(error, console, as_json=False)
        raise typer.Exit(exit_code_of(error)) from None
    console.say(f"{out}: written")
