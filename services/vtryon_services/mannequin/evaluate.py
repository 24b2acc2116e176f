"""Measure a checkpoint on held-out drawings, through the whole mesh, beside what costs nothing.

python -m vtryon_services.mannequin.evaluate [--examples 100] [--steps 2 4] [--checkpoint DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import vtryon
from vtryon_services.embedded import embedded_mesh
from vtryon_services.mannequin.triples import HELD_OUT, Triples, draw_triples, to_picture

_TUCKED, _LOOSE = ", tucked in", ", worn loose"


@dataclass(frozen=True, slots=True)
class Score:
    """Means over examples: colours in 0 to 255, PSNR in decibels."""

    torso_colour_error: float
    psnr_torso: float
    psnr_outside: float


def score(result: Tensor, triples: Triples) -> Score:
    """Compare pictures with the truth, on the shirt and off it.

    Shapes:
        result: (examples, 3, height, width), 0 to 1.
    """
    torso = (triples.shirt_after > 0.95).float()
    outside = (torch.maximum(triples.shirt_before, triples.shirt_after) < 0.02).float()
    wrong = (_mean_colour(result, torso) - _mean_colour(triples.truth, torso)).abs().mean(1)
    return Score(
        float(wrong.mean() * 255),
        _psnr(result, triples.truth, torso),
        _psnr(result, triples.truth, outside),
    )


def _mean_colour(pixels: Tensor, mask: Tensor) -> Tensor:
    total = (pixels * mask[:, None]).sum((2, 3))
    return total / mask.sum((1, 2)).clamp(min=1)[:, None]


def _psnr(result: Tensor, truth: Tensor, mask: Tensor) -> float:
    error = ((result - truth) ** 2).mean(1) * mask
    mean = error.sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
    return float((-10 * torch.log10(mean + 1e-9)).mean())


class Evaluation:
    """Held-out examples, and a mesh to draw them with."""

    def __init__(self, client: vtryon.Client, examples: int, console: Console) -> None:
        self._client = client
        self._console = console
        self.triples = draw_triples(examples, HELD_OUT)

    async def rows(self, steps: Sequence[int]) -> dict[str, Score]:
        """Score the mesh at each number of steps, and the controls."""
        triples, shuffled = self.triples, self.triples.garment.roll(1, 0)
        rows = {
            "the person unchanged": score(triples.person, triples),
            "VAE round trip of the truth": score(await self._round_trip(), triples),
        }
        for count in steps:
            drawn = await self._draw(f"{count} steps", triples.garment, triples.prompts, count)
            rows[f"{count} steps"] = score(drawn, triples)
        drawn = await self._draw("shuffled garments", shuffled, triples.prompts, steps[-1])
        return rows | {"shuffled garments": score(drawn, triples)}

    async def prompt_control(self, steps: int) -> float:
        """Give the share of examples nearer to the truth with its own word than with the other."""
        triples = self.triples
        plain = [prompt.rstrip(".").split(",")[0] for prompt in triples.prompts]
        tucked, loose = [
            await self._draw(word[2:], triples.garment, [one + word for one in plain], steps)
            for word in (_TUCKED, _LOOSE)
        ]

        def distance(drawn: Tensor) -> Tensor:
            return ((drawn - triples.truth) ** 2).mean((1, 2, 3))

        obeyed = (distance(tucked) < distance(loose)) == triples.tucked
        return float(obeyed.float().mean())

    async def _draw(
        self, name: str, garments: Tensor, prompts: Sequence[str], steps: int
    ) -> Tensor:
        async def one(index: int) -> Tensor:
            person, garment = to_picture(self.triples.person[index]), to_picture(garments[index])
            run = self._client.try_on(
                person, garment, prompts[index], steps=steps, seed=index, previews=False
            )
            return _pixels((await run).picture)

        return await self._each(name, one)

    async def _round_trip(self) -> Tensor:
        async def one(index: int) -> Tensor:
            latents = await self._client.latent_encoder.encode(
                to_picture(self.triples.truth[index])
            )
            return _pixels(await self._client.decoding.decode(latents))

        return await self._each("VAE round trip", one)

    async def _each(self, name: str, one: Callable) -> Tensor:  # type: ignore[type-arg]
        count = range(len(self.triples.prompts))
        drawn = [await one(index) for index in track(count, name, console=self._console)]
        return torch.stack(drawn)


def _pixels(picture: vtryon.Picture) -> Tensor:
    return torch.from_numpy(picture.to_numpy().copy()).permute(2, 0, 1).float() / 255


async def evaluate(
    arguments: argparse.Namespace, console: Console
) -> tuple[dict[str, Score], float]:
    """Start a mesh and measure it."""
    given = {"checkpoint": arguments.checkpoint} if arguments.checkpoint else {}
    async with embedded_mesh(**given) as target, vtryon.Client(target) as client:
        evaluation = Evaluation(client, arguments.examples, console)
        rows = await evaluation.rows(arguments.steps)
        return rows, await evaluation.prompt_control(arguments.steps[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, control = asyncio.run(evaluate(arguments, Console(stderr=True)))
    if arguments.json:
        found = {name: asdict(row) for name, row in rows.items()}
        Console().print_json(json.dumps({"rows": found, "prompt_control": control}))
        return
    table = Table("", "torso colour error", "PSNR torso", "PSNR outside", box=None)
    for name, row in rows.items():
        decibels = (f"{row.psnr_torso:.1f} dB", f"{row.psnr_outside:.1f} dB")
        table.add_row(name, f"{row.torso_colour_error:.1f}", *decibels)
    Console().print(table)
    Console().print(f"prompt control: {control:.0%} of {arguments.examples}", highlight=False)


if __name__ == "__main__":
    main()
