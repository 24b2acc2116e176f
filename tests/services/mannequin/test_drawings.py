import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vtryon.types import Stage
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.image_vae import ImageVae
from vtryon_services.engine.placement import Placement
from vtryon_services.mannequin.garments import COLOUR_NAMES, PATTERNS, SLEEVE_NAMES, draw_shirts
from vtryon_services.mannequin.package import fit_preview_map, mannequin_geometry, package
from vtryon_services.mannequin.prompts import (
    AS_IT_IS,
    RECOLOUR,
    RESLEEVE,
    draw_wishes,
    write_prompt,
    write_terse_prompt,
)
from vtryon_services.mannequin.shapes import Dice
from vtryon_services.mannequin.triples import HELD_OUT, draw_triples, held_out


def test_equal_seeds_draw_equal_examples_and_others_others() -> None:
    one, same, other = draw_triples(4, 1), draw_triples(4, 1), draw_triples(4, 2)
    assert torch.equal(one.person, same.person)
    assert one.prompts == same.prompts
    assert not torch.equal(one.person, other.person)


def test_drawings_are_pictures() -> None:
    triples = draw_triples(16, 3)
    for pixels in (triples.person, triples.garment, triples.truth):
        assert pixels.shape == (16, 3, 128, 96)
        assert pixels.min() >= 0
        assert pixels.max() <= 1


def test_person_and_truth_differ_where_a_shirt_is_and_nowhere_else() -> None:
    triples = draw_triples(32, 4)
    changed = (triples.person - triples.truth).abs().amax(1) > 0.02
    shirt = torch.maximum(triples.shirt_before, triples.shirt_after) > 0
    around = torch.zeros(128, 96, dtype=torch.bool)
    around[88:120] = True  # a tucked shirt shows the belt
    around[36:74, 28:68] = True  # a neckline shows skin
    assert not (changed & ~shirt & ~around).any()
    assert changed.any(dim=(1, 2)).all()


def test_what_differs_from_the_garments_picture_is_always_said() -> None:
    triples = draw_triples(256, 5)
    wishes = triples.wishes
    for index, prompt in enumerate(triples.prompts):
        assert ("tucked in" in prompt) == bool(wishes.tucked[index])
        if wishes.change[index] == RECOLOUR:
            assert f", in {COLOUR_NAMES[int(wishes.colour[index])]}" in prompt
        asked = f"with {SLEEVE_NAMES[int(wishes.sleeves[index])]}" in prompt
        assert asked == (int(wishes.change[index]) == RESLEEVE)


def test_another_colour_and_other_sleeves_change_the_truth_and_nothing_else_does() -> None:
    triples = draw_triples(8, 6)
    plain = replace(triples.wishes, change=torch.full((8, 1, 1), AS_IT_IS))
    recoloured = replace(plain, change=torch.full((8, 1, 1), RECOLOUR))
    resleeved = replace(plain, change=torch.full((8, 1, 1), RESLEEVE))
    truth = triples.truth_for(plain)
    assert torch.equal(truth, triples.truth_for(plain))
    assert ((truth - triples.truth_for(recoloured)).abs().amax((1, 2, 3)) > 0.05).any()
    other = (triples.wishes.sleeves != triples.shirts.sleeves).flatten()
    differs = (truth - triples.truth_for(resleeved)).abs().amax((1, 2, 3)) > 0.05
    assert torch.equal(differs, other)


def test_a_terse_prompt_is_the_instruction_alone() -> None:
    dice = Dice(64, 7)
    wishes = draw_wishes(dice, draw_shirts(dice))
    prompts = [write_terse_prompt(wishes, index) for index in range(64)]
    for index, one in enumerate(prompts):
        assert ("tucked in" if wishes.tucked[index] else "worn loose") in one
    assert not any("picture" in one for one in prompts)


def test_a_vague_prompt_leaves_open_how_the_shirt_ends() -> None:
    triples = draw_triples(64, 7)
    full = [
        write_prompt(triples.shirts, triples.wishes, index, index, vague=True)
        for index in range(64)
    ]
    terse = [write_terse_prompt(triples.wishes, index, vague=True) for index in range(64)]
    assert not any("tucked" in one or "loose" in one for one in full + terse)
    assert " " in terse


def test_every_pattern_sleeve_and_neck_is_drawn_and_patterns_keep_away_from_8_pixels() -> None:
    shirts = draw_shirts(Dice(512, 8))
    for part, count in ((shirts.pattern, len(PATTERNS)), (shirts.sleeves, 3), (shirts.neck, 3)):
        assert set(part.flatten().tolist()) == set(range(count))
    shortest_torso = 54 * 0.95
    assert shirts.period.min() * shortest_torso > 10


def test_held_out_examples_are_far_from_the_training_seeds() -> None:
    assert HELD_OUT == 10**9
    assert held_out(0).prompt == held_out(0).prompt
    assert np.any(np.asarray(held_out(0).person) != np.asarray(held_out(1).person))


def test_packaging_again_gives_the_shipped_geometry(tmp_path) -> None:
    import shutil

    copy = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")
    (copy / "geometry.json").unlink()
    package(copy)
    ours, shipped = (
        json.loads((folder / "geometry.json").read_text()) for folder in (copy, SHIPPED_CHECKPOINT)
    )
    weights = [np.array(geometry["preview"].pop("weights")) for geometry in (ours, shipped)]
    np.testing.assert_allclose(*weights, atol=1e-3)
    ours["preview"], shipped["preview"] = None, None
    assert ours == shipped
    Checkpoint.open(copy).digest(Stage.DECODING)


def test_the_preview_map_explains_the_colours() -> None:
    vae = ImageVae.load(Checkpoint.open(SHIPPED_CHECKPOINT), Placement.of("cpu", "fp32"))
    preview = mannequin_geometry(fit_preview_map(vae)).preview
    truth = draw_triples(16, HELD_OUT).truth
    latents = vae.encode(truth * 2 - 1)
    weights, bias = torch.tensor(preview.weights), torch.tensor(preview.bias)
    drawn = torch.einsum("nchw,cr->nrhw", latents, weights) + bias.view(1, 3, 1, 1)
    error = (drawn - torch.nn.functional.avg_pool2d(truth, 8)).abs().mean()
    assert error == pytest.approx(0, abs=0.06)


def test_the_checkpoint_is_small_enough_to_ship() -> None:
    size = sum(path.stat().st_size for path in SHIPPED_CHECKPOINT.rglob("*") if path.is_file())
    assert size < 15_000_000
