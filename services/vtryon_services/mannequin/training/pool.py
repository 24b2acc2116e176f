"""Encoded examples on disk, so that the transformer's training waits for no encoder.

A shard is a small world: a few people, each wearing every one of some looks. Each pair of looks of
a person is an example (the worn look, the other look's garment, the other look worn), so that a
shard's encoded pictures yield far more examples than as triples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d, pad

from vtryon.cli.console import PlainConsole
from vtryon_services.engine import latents as packing
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.image_vae import ImageVae
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.text_encoder import PromptEncoder, PromptInputs, Seen
from vtryon_services.mannequin.garments import Shirts, draw_flat, draw_shirts
from vtryon_services.mannequin.people import draw_people, draw_worn
from vtryon_services.mannequin.prompts import (
    Wishes,
    draw_wishes,
    write_prompt,
    write_terse_prompt,
)
from vtryon_services.mannequin.shapes import Dice, take
from vtryon_services.mannequin.triples import to_picture

TOKENS = 72  # the longest prompt of the drawings has fewer
_TERSE = 0.2  # this share of the prompts is the instruction alone, or nothing
_VAGUE = 0.4  # this share leaves open how the shirt ends, so that negative prompts can decide it
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class World:
    """How many people and looks a shard has, and from how many looks each example starts."""

    people: int = 4
    looks: int = 16
    sources: int = 3

    @property
    def examples(self) -> int:
        """How many examples a shard has."""
        return self.people * self.looks * self.sources


class Encoder:
    """The frozen parts of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        self._vae = ImageVae.load(checkpoint, placement)
        self._text = PromptEncoder.load(checkpoint, placement)

    def encode(self, world: World, seed: int) -> dict[str, torch.Tensor]:
        """Draw and encode a shard.

        Shapes:
            worn: (people · looks, picture tokens, 64); flat: (looks, picture tokens, 64).
            shirt: (people · looks, picture tokens), how much of a token is shirt.
            before, garment, after: (examples,), which of those an example is made of.
            text: (examples, TOKENS, width), zeros behind `length` tokens.
        """
        one, many = Dice(world.looks, seed), Dice(world.people, seed + 1)
        shirts, people = draw_shirts(one), draw_people(many)
        wishes = draw_wishes(one, shirts)
        who = torch.arange(world.people).repeat_interleave(world.looks)
        look = torch.arange(world.looks).repeat(world.people)
        asked = take(wishes, look)
        tucked = Dice(len(look), seed + 2).chance(0.45)
        asked = Wishes(tucked, asked.change, asked.colour, asked.sleeves)
        worn = draw_worn(take(people, who), asked.worn(take(shirts, look)), tucked)
        flat = draw_flat(shirts, one)
        before, after = _pairs(world, random.Random(seed))  # noqa: S311
        texts = self._texts(
            _prompts(take(shirts, look), asked, after, seed),
            [(b, len(look) + int(look[a])) for b, a in zip(before, after, strict=True)],
            torch.cat([worn.pixels, flat]),
        )
        return {
            "worn": self._tokens(worn.pixels),
            "flat": self._tokens(flat),
            "shirt": avg_pool2d(worn.shirt[:, None], 16).flatten(1).half(),
            "before": torch.tensor(before),
            "after": torch.tensor(after),
            "garment": look[after],
            "text": torch.stack([_padded(text) for text in texts]).half(),
            "length": torch.tensor([len(text) for text in texts]),
        }

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = [self._vae.encode(part * 2 - 1) for part in pixels.split(_ROWS_AT_ONCE)]
        return torch.stack([packing.pack(one) for one in torch.cat(latents)]).half()

    def _texts(
        self, prompts: Sequence[str], pictures: Sequence[tuple[int, int]], drawn: torch.Tensor
    ) -> list[torch.Tensor]:
        """Embed prompts, each with two of the pictures, which are prepared once."""
        seen = [self._text.see([to_picture(pixels)], resolve(None)) for pixels in drawn]
        asked = [
            PromptInputs(
                prompt,
                Seen(*map(torch.cat, zip(seen[one], seen[other], strict=True))),
            )
            for prompt, (one, other) in zip(prompts, pictures, strict=True)
        ]
        parts = [asked[at : at + _ROWS_AT_ONCE] for at in range(0, len(asked), _ROWS_AT_ONCE)]
        return [text for part in parts for text in self._text.embed(part)]


def _padded(text: torch.Tensor) -> torch.Tensor:
    if len(text) > TOKENS:
        raise ValueError(f"a prompt of {len(text)} tokens; the pool takes {TOKENS}")
    return pad(text, (0, 0, 0, TOKENS - len(text)))


def _pairs(world: World, rng: random.Random) -> tuple[list[int], list[int]]:
    """Pick looks to come from for every look of every person."""
    before, after = [], []
    for person in range(world.people):
        first = person * world.looks
        for look in range(world.looks):
            others = [other for other in range(world.looks) if other != look]
            before += [first + other for other in rng.sample(others, world.sources)]
            after += [first + look] * world.sources
    return before, after


def _prompts(shirts: Shirts, wishes: Wishes, after: list[int], seed: int) -> list[str]:
    rng = random.Random(seed)  # noqa: S311

    def prompt(index: int) -> str:
        vague = rng.random() < _VAGUE
        if rng.random() < _TERSE:
            return write_terse_prompt(wishes, index, vague=vague)
        return write_prompt(shirts, wishes, index, rng.randrange(2**31), vague=vague)

    return [prompt(index) for index in after]


def fill_pool(
    folder: Path, encoder: Encoder, shards: int, world: World, seed: int, console: PlainConsole
) -> None:
    """Write the shards that are missing, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in track(range(shards), "encoding", console=console):
        path = folder / f"shard-{number:04d}.safetensors"
        if not path.exists():
            scratch = path.with_suffix(".part")
            save_file(encoder.encode(world, seed + number * world.examples), scratch)
            scratch.replace(path)


class Pool:
    """All shards in memory."""

    def __init__(self, shards: list[dict[str, torch.Tensor]]) -> None:
        firsts = {"before": "worn", "after": "worn", "garment": "flat"}
        reached = dict.fromkeys(("worn", "flat"), 0)
        for shard in shards:
            for name, among in firsts.items():
                shard[name] = shard[name] + reached[among]
            for among in reached:
                reached[among] += len(shard[among])
        self._parts = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}

    @classmethod
    def load(cls, folder: Path) -> Pool:
        """Read all shards.

        Raises:
            FileNotFoundError: there is none.
        """
        shards = [load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))]
        if not shards:
            raise FileNotFoundError(f"no shards in {folder}")
        return cls(shards)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.lengths)

    @property
    def lengths(self) -> torch.Tensor:
        """How many text tokens each example has: (examples,)."""
        return self._parts["length"]

    def batch(
        self, index: torch.Tensor, tokens: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Pick examples.

        Shapes:
            person, garment, target: (examples, picture tokens, 64).
            shirt: (examples, picture tokens), how much of a token is or was shirt.
            text: (examples, tokens, width); counts: (examples, tokens), true for no padding.
        """
        parts = self._parts
        before, after = parts["before"][index], parts["after"][index]
        found = {
            "person": parts["worn"][before],
            "garment": parts["flat"][parts["garment"][index]],
            "target": parts["worn"][after],
            "shirt": torch.maximum(parts["shirt"][before], parts["shirt"][after]),
            "text": parts["text"][index, :tokens],
            "counts": torch.arange(tokens) < parts["length"][index, None],
        }
        return {
            name: part.to(device, torch.float32 if part.is_floating_point() else None)
            for name, part in found.items()
        }
