"""Rotary positions of picture tokens: the rule of transformers 4.57.6, written down once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from tests.support.checkpoints import random_checkpoint

from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.text_encoder import PromptEncoder, PromptInputs
from vtryon_services.models.modules import text_positions

SIZES = [(96, 128), (200, 64), (64, 160)]
MERGE = 2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    folder = tmp_path_factory.mktemp("positions") / "checkpoint"
    checkpoint = Checkpoint.open(random_checkpoint(folder, Geometry(condition_area=128 * 128)))
    return PromptEncoder.load(checkpoint, Placement.of("cpu", "fp32"))


def asked(encoder: PromptEncoder, prompt: str, pictures: int) -> PromptInputs:
    images = [Image.effect_noise(size, 90).convert("RGB") for size in SIZES[:pictures]]
    [one] = encoder.prepare([prompt], images, resolve(None))
    return one


def golden(tokens: list[int], grids: list[list[int]], picture_token: int) -> torch.Tensor:
    """Count as transformers 4.57.6 does, which finds pictures by `input_ids` alone.

    Text counts on from the largest position so far + 1, equally on all three axes; a picture's
    merged patches start there, each at its own row and column.
    """
    positions: list[tuple[int, int, int]] = []
    remaining = iter(grids)
    at = 0
    while at < len(tokens):
        start = max(map(max, positions)) + 1 if positions else 0
        if tokens[at] != picture_token:
            positions.append((start, start, start))
            at += 1
            continue
        frames, rows, columns = next(remaining)
        rows, columns = rows // MERGE, columns // MERGE
        positions += [
            (start + frame, start + row, start + column)
            for frame in range(frames)
            for row in range(rows)
            for column in range(columns)
        ]
        at += frames * rows * columns
    assert next(remaining, None) is None
    return torch.tensor(positions).T


@contextmanager
def language_model_calls(encoder: PromptEncoder) -> Iterator[list[dict]]:
    """What the language model is called with."""
    calls: list[dict] = []
    hook = encoder.model.language_model.register_forward_pre_hook(
        lambda _, __, given: calls.append(given), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def tokens_of(encoder: PromptEncoder, items: list[PromptInputs]) -> list[list[int]]:
    return [encoder._tokenizer(encoder.write(one))["input_ids"] for one in items]


def test_the_rule_by_hand() -> None:
    """Two words, a picture of 2 × 3 merged patches, a word."""
    found = golden([5, 6, 9, 9, 9, 9, 9, 9, 7], [[1, 4, 6]], picture_token=9)
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


def test_the_checkpoints_pictures_have_different_grids(encoder) -> None:
    grids = asked(encoder, "a", 3).seen.grids.tolist()
    assert len({tuple(grid) for grid in grids}) == 3
    assert all(rows != columns for _, rows, columns in grids)


@pytest.mark.parametrize("pictures", [0, 1, 2, 3])
def test_every_token_has_the_golden_position(encoder, pictures: int) -> None:
    item = asked(encoder, "a long red shirt", pictures)
    [tokens] = tokens_of(encoder, [item])
    wanted = golden(tokens, item.seen.grids.tolist(), encoder.model.config.image_token_id)
    with language_model_calls(encoder) as calls:
        [found] = encoder.embed([item])
    positions = calls[0]["position_ids"]
    if pictures:
        assert torch.equal(positions[:, 0], wanted)
    else:
        assert positions is None  # the library's own, which count from 0
    with language_model_calls(encoder) as calls, torch.inference_mode():
        model, grids = encoder.model, item.seen.grids
        seen = {"pixel_values": item.seen.pixels, "image_grid_thw": grids} if pictures else {}
        hidden = model(
            input_ids=torch.tensor([tokens]), position_ids=wanted[:, None], **seen
        ).last_hidden_state[0, 64:]
    assert torch.equal(found, hidden)


def test_prompts_of_different_pictures_in_one_batch_have_the_golden_positions(encoder) -> None:
    items = [
        asked(encoder, prompt, count) for prompt, count in [("a red shirt", 2), ("b", 0), ("c", 1)]
    ]
    tokens = tokens_of(encoder, items)
    with language_model_calls(encoder) as calls:
        encoder.embed(items)
    for number, (own, item) in enumerate(zip(tokens, items, strict=True)):
        wanted = golden(own, item.seen.grids.tolist(), encoder.model.config.image_token_id)
        assert torch.equal(calls[0]["position_ids"][:, number, : len(own)], wanted)


def test_positions_for_the_exported_graph_are_the_golden_ones(encoder) -> None:
    item = asked(encoder, "a long red shirt", 3)
    [tokens] = tokens_of(encoder, [item])
    ids = torch.tensor([tokens])
    found = text_positions(encoder.model, ids, torch.ones_like(ids), item.seen.grids)
    wanted = golden(tokens, item.seen.grids.tolist(), encoder.model.config.image_token_id)
    assert torch.equal(found[:, 0], wanted)
