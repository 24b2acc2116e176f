"""Evaluation of checkpoints on held-out drawings, through the whole mesh, with baselines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import vtryon
from vtryon.cli.console import PlainConsole
from vtryon_services.embedded import embedded_mesh
from vtryon_services.mannequin.garments import COLOUR_NAMES, PATTERNS, SLEEVE_NAMES
from vtryon_services.mannequin.prompts import AS_IT_IS, RECOLOUR, RESLEEVE, Wishes
from vtryon_services.mannequin.triples import HELD_OUT, Triples, draw_triples, to_picture

_AT_ONCE = 16
_NEGATIVE_SCALE = 2.0
_PLAIN = "Put the shirt from picture 2 on the person in picture 1"


@dataclass(frozen=True, slots=True)
class Score:
    """Means over examples: colours in 0 to 255, PSNR in decibels."""

    torso_colour_error: float
    psnr_torso: float
    psnr_outside: float


@dataclass(slots=True)
class Report:
    """Scores of one checkpoint.

    Attributes:
        rows: scores by kind of example.
        patterns: scores by pattern, at the default number of steps.
        obeyed: the share of followed prompts, by their request.
    """

    rows: dict[str, Score] = field(default_factory=dict)
    patterns: dict[str, Score] = field(default_factory=dict)
    obeyed: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


class Errors:
    """The errors of a batch of pictures, an example each: on the shirt, and off it."""

    def __init__(self, result: Tensor, triples: Triples) -> None:
        torso = (triples.shirt_after > 0.95).float()
        outside = (torch.maximum(triples.shirt_before, triples.shirt_after) < 0.02).float()
        means = _mean_colour(result, torso) - _mean_colour(triples.truth, torso)
        self.colour = means.abs().mean(1) * 255
        self.torso = _psnr(result, triples.truth, torso)
        self.outside = _psnr(result, triples.truth, outside)

    def score(self, where: Tensor | None = None) -> Score:
        """Average over the examples, or over some."""
        chosen = slice(None) if where is None else where
        parts = (self.colour, self.torso, self.outside)
        return Score(*(float(part[chosen].mean()) for part in parts))


def score(result: Tensor, triples: Triples) -> Score:
    """Compare pictures with the truth.

    Shapes:
        result: (examples, 3, height, width), 0 to 1.
    """
    return Errors(result, triples).score()


def _mean_colour(pixels: Tensor, mask: Tensor) -> Tensor:
    total = (pixels * mask[:, None]).sum((2, 3))
    return total / mask.sum((1, 2)).clamp(min=1)[:, None]


def _psnr(result: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    error = ((result - truth) ** 2).mean(1) * mask
    mean = error.sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
    return -10 * torch.log10(mean + 1e-9)


def paste_mean_colour(triples: Triples) -> Tensor:
    """Baseline: paint the mean colour of the garment's middle over the true shirt."""
    colour = triples.garment[:, :, 44:92, 34:62].mean((2, 3))
    cover = triples.shirt_after[:, None]
    return triples.person * (1 - cover) + colour[:, :, None, None] * cover


class Variant(NamedTuple):
    """A variant of every example: correct result, prompt, and options."""

    wishes: Wishes
    prompts: str | Sequence[str]
    options: Mapping[str, Any] = {}


class Evaluation:
    """Held-out examples, and a mesh to draw them with."""

    def __init__(self, client: vtryon.Client, triples: Triples, progress: Progress) -> None:
        self._client = client
        self._progress = progress
        self.triples = triples
        self._people = [to_picture(pixels) for pixels in triples.person]
        self._garments = [to_picture(pixels) for pixels in triples.garment]

    async def report(self, steps: int, *, full: bool) -> Report:
        """Score the mesh at `steps`; fully: other numbers of steps, guidance, and obedience."""
        triples, report = self.triples, Report()
        report.rows["the person unchanged"] = score(triples.person, triples)
        report.rows["the garment's mean colour"] = score(paste_mean_colour(triples), triples)
        report.rows["VAE round trip of the truth"] = score(await self._round_trip(), triples)
        errors = Errors(await self.draw(f"{steps} steps", steps=steps), triples)
        report.rows[f"{steps} steps"] = errors.score()
        for index, name in enumerate(PATTERNS):
            where = triples.shirts.pattern.flatten() == index
            if where.any():
                report.patterns[name] = errors.score(where)
        turned = self._garments[1:] + self._garments[:1]
        drawn = await self.draw("shuffled garments", garments=turned, steps=steps)
        report.rows["shuffled garments"] = score(drawn, triples)
        report.obeyed["tucked in / worn loose"] = await self._obeys_tuck(steps)
        if full:
            for other in sorted({1, 2, 4, 8} - {steps}):
                drawn = await self.draw(f"{other} steps", steps=other)
                report.rows[f"{other} steps"] = score(drawn, triples)
            for scale in (2.0, 4.0):
                name = f"{steps} steps, guidance {scale:g}"
                drawn = await self.draw(name, steps=steps, **_guided(scale, " "))
                report.rows[name] = score(drawn, triples)
            report.obeyed |= await self._obeys_changes(steps)
            report.obeyed[
                f"a negative prompt, guidance {_NEGATIVE_SCALE:g}"
            ] = await self._obeys_negative(steps)
        return report

    async def draw(
        self, name: str, prompts: Sequence[str] = (), garments: Sequence[Any] = (), **options: Any
    ) -> Tensor:
        """Draw every example, by default as it is asked."""
        prompts, garments = prompts or self.triples.prompts, garments or self._garments

        async def one(index: int) -> Tensor:
            pictures = (self._people[index], garments[index])
            run = self._client.try_on(
                *pictures, prompts[index], seed=index, previews=False, **options
            )
            return _pixels((await run).picture)

        return await self._each(name, one)

    async def _obeys_tuck(self, steps: int) -> float:
        """Share of examples nearer to the truth with its own word than with the other."""
        tucked = Variant(self._wishes(True), _PLAIN + ", tucked in")
        loose = Variant(self._wishes(False), _PLAIN + ", worn loose")
        return await self._obeys("tucked in / worn loose", steps, tucked, loose)

    async def _obeys_changes(self, steps: int) -> dict[str, float]:
        """Shares of examples nearer to the truth with the change asked for than without it."""
        shirts, count = self.triples.shirts, len(self._people)
        unchanged = self._wishes(False)
        colour = ((shirts.named + 5) % len(COLOUR_NAMES)).view(-1, 1, 1)
        sleeves = (shirts.sleeves + 1) % len(SLEEVE_NAMES)
        recolour = replace(unchanged, change=torch.full((count, 1, 1), RECOLOUR), colour=colour)
        resleeve = replace(unchanged, change=torch.full((count, 1, 1), RESLEEVE), sleeves=sleeves)
        colours = [f"{_PLAIN}, in {COLOUR_NAMES[int(one)]}, worn loose" for one in colour]
        lengths = [f"{_PLAIN}, with {SLEEVE_NAMES[int(one)]}, worn loose" for one in sleeves]
        plain = Variant(unchanged, _PLAIN + ", worn loose")
        told = shirts.has_ground.flatten()
        return {
            "another colour": await self._obeys(
                "another colour", steps, Variant(recolour, colours), plain, where=told
            ),
            "other sleeves": await self._obeys(
                "other sleeves", steps, Variant(resleeve, lengths), plain
            ),
        }

    async def _obeys_negative(self, steps: int) -> float:
        """Share of examples that come out loose without "tucked in", and the other way round."""
        loose = Variant(self._wishes(False), _PLAIN, _guided(_NEGATIVE_SCALE, "tucked in"))
        tucked = Variant(self._wishes(True), _PLAIN, _guided(_NEGATIVE_SCALE, "worn loose"))
        return await self._obeys("a negative prompt", steps, loose, tucked)

    async def _obeys(
        self, name: str, steps: int, one: Variant, other: Variant, where: Tensor | None = None
    ) -> float:
        """Share of drawings that are nearer to the truth of their own words than to the other's."""
        chosen = slice(None) if where is None else where
        right = []
        for own, against in ((one, other), (other, one)):
            words = own.prompts
            prompts = [words] * len(self._people) if isinstance(words, str) else words
            drawn = await self.draw(name, prompts, steps=steps, **own.options)
            truth, wrong = (self.triples.truth_for(asked.wishes) for asked in (own, against))
            right.append((_distance(drawn, truth) < _distance(drawn, wrong))[chosen])
        return float(torch.cat(right).float().mean())

    def _wishes(self, tucked: bool) -> Wishes:
        wishes = self.triples.wishes
        return replace(
            wishes,
            tucked=torch.full_like(wishes.tucked, tucked),
            change=torch.full_like(wishes.change, AS_IT_IS),
        )

    async def _round_trip(self) -> Tensor:
        async def one(index: int) -> Tensor:
            truth = to_picture(self.triples.truth[index])
            [latents] = await self._client.latent_encoder.encode([truth])
            return _pixels(await self._client.decoding.decode(latents))

        return await self._each("VAE round trip", one)

    async def _each(self, name: str, one: Callable[[int], Awaitable[Tensor]]) -> Tensor:
        bar = self._progress.add_task(name, total=len(self._people))
        room = asyncio.Semaphore(_AT_ONCE)

        async def work(index: int) -> Tensor:
            async with room:
                drawn = await one(index)
            self._progress.advance(bar)
            return drawn

        return torch.stack(await asyncio.gather(*map(work, range(len(self._people)))))


def _guided(scale: float, negative_prompt: str) -> dict[str, Any]:
    return {"true_cfg_scale": scale, "negative_prompt": negative_prompt}


def _distance(drawn: Tensor, truth: Tensor) -> Tensor:
    return ((drawn - truth) ** 2).mean((1, 2, 3))


def _pixels(picture: vtryon.Picture) -> Tensor:
    return torch.from_numpy(picture.to_numpy().copy()).permute(2, 0, 1).float() / 255


async def evaluate(
    checkpoint: Path | None, examples: int, steps: int, console: PlainConsole, *, full: bool
) -> Report:
    """Start a mesh on a checkpoint, by default the shipped one, and measure it."""
    given = {"checkpoint": checkpoint} if checkpoint else {}
    triples = draw_triples(examples, HELD_OUT)
    async with embedded_mesh(**given) as target, vtryon.Client(target) as client:
        with Progress(console=console) as progress:
            return await Evaluation(client, triples, progress).report(steps, full=full)


def show(reports: dict[str, Report], console: PlainConsole) -> None:
    """Print a table of scores, one of patterns, and the followed prompts, for each checkpoint."""
    for name, report in reports.items():
        for title, rows in (("drawn", report.rows), ("pattern", report.patterns)):
            table = Table(title, "torso colour error", "PSNR torso", "PSNR outside", box=None)
            table.title = name
            for row, found in rows.items():
                decibels = (f"{found.psnr_torso:.1f} dB", f"{found.psnr_outside:.1f} dB")
                table.add_row(row, f"{found.torso_colour_error:.1f}", *decibels)
            console.print(table)
        for asked, share in report.obeyed.items():
            console.say(f"obeyed, {asked}: {share:.1%}")
