"""Encoded examples on disk, so that the transformer's training waits for no encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d, pad

from vtryon_services.engine import latents as packing
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.still_vae import StillVae
from vtryon_services.engine.text_encoder import TextEncoder
from vtryon_services.mannequin.triples import Triples, draw_triples, to_picture

TOKENS = 64  # the longest prompt of the drawings has fewer


class Encoder:
    """The frozen parts of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        self._vae = StillVae.load(checkpoint, placement)
        self._text = TextEncoder.load(checkpoint, placement)

    def encode(self, count: int, seed: int) -> dict[str, torch.Tensor]:
        """Draw and encode examples.

        Shapes:
            person, garment, target: (count, picture tokens, 64).
            text: (count, TOKENS, width), zeros behind `length` tokens.
            shirt: (count, picture tokens), how much of a token is or was shirt.
        """
        triples = draw_triples(count, seed)
        shirt = torch.maximum(triples.shirt_before, triples.shirt_after)
        texts = [self._embed(triples, index) for index in range(count)]
        return {
            "person": self._tokens(triples.person),
            "garment": self._tokens(triples.garment),
            "target": self._tokens(triples.truth),
            "shirt": avg_pool2d(shirt[:, None], 16).flatten(1).half(),
            "text": torch.stack(
                [pad(text, (0, 0, 0, TOKENS - len(text))) for text in texts]
            ).half(),
            "length": torch.tensor([len(text) for text in texts]),
        }

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack([packing.pack(one) for one in self._vae.encode(pixels * 2 - 1)]).half()

    def _embed(self, triples: Triples, index: int) -> torch.Tensor:
        pictures = [to_picture(triples.person[index]), to_picture(triples.garment[index])]
        asked = self._text.prepare([triples.prompts[index]], pictures, resolve(None))
        return self._text.embed(asked)[0]


def _pad(text: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(text, (0, 0, 0, TOKENS - len(text)))


def fill_pool(
    folder: Path, encoder: Encoder, shards: int, size: int, seed: int, console: Console
) -> None:
    """Write the shards that are missing, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in track(range(shards), "encoding", console=console):
        path = folder / f"shard-{number:04d}.safetensors"
        if not path.exists():
            scratch = path.with_suffix(".part")
            save_file(encoder.encode(size, seed + number * size), scratch)
            scratch.replace(path)


def load_pool(folder: Path) -> dict[str, torch.Tensor]:
    """Read all shards as one.

    Raises:
        FileNotFoundError: there is none.
    """
    shards = [load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))]
    if not shards:
        raise FileNotFoundError(f"no shards in {folder}")
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
