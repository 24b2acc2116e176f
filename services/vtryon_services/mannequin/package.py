"""Finishing a checkpoint: its preview map, geometry.json and digests.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vtryon.types import Profile
from vtryon_services.engine.checkpoint import Checkpoint, write_digests
from vtryon_services.engine.defaults import DEFAULTS
from vtryon_services.engine.geometry import FILE_NAME, Geometry, PreviewMap, Size
from vtryon_services.engine.image_vae import ImageVae
from vtryon_services.engine.placement import Placement
from vtryon_services.mannequin.shapes import HEIGHT, WIDTH
from vtryon_services.mannequin.triples import draw_triples

_EXAMPLES = 256
_SEED = 20_000


def fit_preview_map(vae: ImageVae) -> PreviewMap:
    """Fit, by least squares on training drawings, the linear map from latents to mean colours."""
    pixels = draw_triples(_EXAMPLES, _SEED).truth
    latents = vae.encode(pixels * 2 - 1)
    colours = torch.nn.functional.avg_pool2d(pixels, 8)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, vae.channels)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    outputs = colours.permute(0, 2, 3, 1).reshape(-1, 3)
    solution = torch.linalg.lstsq(inputs, outputs).solution
    rows = [tuple(round(value, 5) for value in row) for row in solution.tolist()]
    return PreviewMap(weights=tuple(rows[:-1]), bias=rows[-1])


def mannequin_geometry(preview: PreviewMap) -> Geometry:
    """Give the sizes that the model was trained at."""
    quick = DEFAULTS[Profile.LIGHTNING]
    return Geometry(
        fit="pad",
        size=Size(WIDTH, HEIGHT),
        reference_area=WIDTH * HEIGHT,
        condition_area=WIDTH * HEIGHT,
        max_target_area=512 * 512,
        defaults=dict.fromkeys(Profile, quick),
        preview=preview,
    )


def package(folder: Path) -> None:
    """Write the files that accompany the weights."""
    for config in folder.glob("*/config.json"):
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (folder / "digests.json").unlink(missing_ok=True)
    vae = ImageVae.load(Checkpoint.open(folder), Placement.of("cpu", "fp32"))
    geometry = mannequin_geometry(fit_preview_map(vae))
    (folder / FILE_NAME).write_text(geometry.model_dump_json(indent=2) + "\n")
    write_digests(folder)
