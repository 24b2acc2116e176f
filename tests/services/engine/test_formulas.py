"""Guidance, packing, noise and rotary positions, each against another way to compute it."""

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

from vtryon.types import GuidanceNorm, RopeLayout
from vtryon_services.engine.defaults import Guidance
from vtryon_services.engine.geometry import PreviewMap
from vtryon_services.engine.guidance import guide
from vtryon_services.engine.latents import draw_noise, pack, preview, unpack
from vtryon_services.engine.rope import Rope

TOKENS, SCALE, SIGMA = 12, 4.0, 0.6


@pytest.fixture
def velocities() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(TOKENS, 64, generator=generator) for _ in range(3))


def test_the_velocity_norm_keeps_each_token_as_long_as_the_conditional_one(velocities) -> None:
    positive, negative, latents = velocities
    guided = guide(positive, negative, latents, SIGMA, Guidance(SCALE), GuidanceNorm.VELOCITY)
    torch.testing.assert_close(guided.norm(dim=-1), positive.norm(dim=-1))
    plain = negative + SCALE * (positive - negative)
    cosine = torch.nn.functional.cosine_similarity(guided, plain)
    torch.testing.assert_close(cosine, torch.ones(TOKENS))


def test_the_x0_norm_clamps_per_latent_pixel_over_channels(velocities) -> None:
    positive, negative, latents = velocities
    guided = guide(positive, negative, latents, SIGMA, Guidance(SCALE), GuidanceNorm.X0)
    height, width = 6, 8

    def x0(velocity: torch.Tensor) -> torch.Tensor:
        return unpack(latents - SIGMA * velocity, height, width)

    plain = negative + SCALE * (positive - negative)
    wanted, raw = x0(positive), x0(plain)
    scale = (wanted.norm(dim=0) / (raw.norm(dim=0) + 1e-8)).clamp(0, 1)
    torch.testing.assert_close(x0(guided), raw * scale)


def test_the_x0_norm_shortens_and_never_lengthens() -> None:
    """Half of the tokens have an x0 twice as long as the conditional one, half one half as long."""
    latents = torch.ones(TOKENS, 64)
    latents[1::2] = -1.0
    positive = torch.zeros(TOKENS, 64)  # its x0 is the latents
    factor = torch.tensor([2.0, 0.5]).repeat(TOKENS // 2)[:, None]
    wanted = latents * factor
    guided = (latents - wanted) / SIGMA
    negative = guided / (1 - SCALE)
    found = guide(positive, negative, latents, SIGMA, Guidance(SCALE), GuidanceNorm.X0)
    torch.testing.assert_close(latents - SIGMA * found, latents * factor.clamp(max=1.0))


def test_the_x0_norm_takes_two_x0_of_nothing() -> None:
    """Their lengths are both 0, and 0 divided by 0 would be NaN."""
    latents = torch.ones(TOKENS, 64)
    velocity = 2 * latents  # half of it is all of the latents
    found = guide(velocity, velocity, latents, 0.5, Guidance(3.0), GuidanceNorm.X0)
    torch.testing.assert_close(found, velocity)


def test_the_two_norms_are_not_interchangeable(velocities) -> None:
    positive, negative, latents = velocities
    one, other = (
        guide(positive, negative, latents, SIGMA, Guidance(SCALE), norm)
        for norm in (GuidanceNorm.VELOCITY, GuidanceNorm.X0)
    )
    assert (one - other).norm() > 0.05 * one.norm()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_guidance_is_rescaled_as_by_diffusers(velocities, share: float) -> None:
    positive, negative, latents = velocities
    plain = negative + SCALE * (positive - negative)
    [wanted] = rescale_noise_cfg(plain[None], positive[None], share)
    found = guide(positive, negative, latents, SIGMA, Guidance(SCALE, share), GuidanceNorm.NONE)
    torch.testing.assert_close(found, wanted)
    if share == 1:
        torch.testing.assert_close(found.std(), positive.std())


def test_the_velocity_norm_leaves_nothing_to_rescale(velocities) -> None:
    one, other = (
        guide(*velocities, SIGMA, Guidance(SCALE, share), GuidanceNorm.VELOCITY)
        for share in (0.0, 0.7)
    )
    torch.testing.assert_close(one, other)


def test_the_x0_norm_bounds_rescaled_predictions(velocities) -> None:
    one, other = (
        guide(*velocities, SIGMA, Guidance(SCALE, share), GuidanceNorm.X0) for share in (0.0, 0.7)
    )
    assert (one - other).norm() > 0.01 * one.norm()


@pytest.mark.parametrize("norm", list(GuidanceNorm))
def test_at_scale_one_guidance_vanishes(velocities, norm: GuidanceNorm) -> None:
    positive, negative, latents = velocities
    guided = guide(positive, negative, latents, SIGMA, Guidance(), norm)
    torch.testing.assert_close(guided, positive, atol=1e-5, rtol=1e-5)


def test_packing_is_the_librarys_and_can_be_undone() -> None:
    latents = torch.arange(16 * 6 * 8).float().reshape(16, 6, 8)
    theirs = QwenImageEditPlusPipeline._pack_latents(latents[None], 1, 16, 6, 8)[0]
    torch.testing.assert_close(pack(latents), theirs)
    torch.testing.assert_close(unpack(pack(latents), 6, 8), latents)


def test_a_seed_means_what_it_means_to_diffusers() -> None:
    generator = torch.Generator("cpu").manual_seed(5)
    theirs = torch.randn((1, 1, 16, 4, 6), generator=generator)
    torch.testing.assert_close(draw_noise(5, 16, 4, 6), theirs[0, 0])


@pytest.mark.parametrize(
    "shapes", [[(1, 8, 6)], [(1, 8, 6), (1, 8, 6), (1, 4, 10)], [(1, 7, 5), (1, 9, 3)]]
)
def test_the_diffusers_layout_is_the_librarys(shapes: list) -> None:
    theirs = QwenEmbedRope(theta=10000, axes_dim=[8, 12, 12], scale_rope=True)
    ours = Rope((8, 12, 12)).table(tuple(shapes), 9, RopeLayout.DIFFUSERS, torch.device("cpu"))
    pictures, text = theirs([shapes], max_txt_seq_len=9, device=torch.device("cpu"))
    torch.testing.assert_close(torch.view_as_complex(ours)[:, 0], torch.cat([text, pictures]))


def test_the_comfy_layout_counts_the_target_alone_and_centres_odd_counts() -> None:
    def angles(layout: RopeLayout, shapes: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        table = Rope((2, 2, 2)).table(shapes, 1, layout, torch.device("cpu"))
        text, pictures = torch.view_as_complex(table)[:, 0].angle().split([1, len(table) - 1])
        return pictures, text

    shapes = ((1, 3, 3), (1, 6, 6))
    pictures, text = angles(RopeLayout.COMFY, shapes)
    assert pictures[:9, 1].unique().tolist() == pytest.approx([-1, 0, 1])
    assert text[0, 0].item() == pytest.approx(1)  # 3 // 2
    pictures, text = angles(RopeLayout.DIFFUSERS, shapes)
    assert pictures[:9, 1].unique().tolist() == pytest.approx([-2, -1, 0])
    assert text[0, 0].item() == pytest.approx(3)  # 6 // 2


def test_a_preview_is_a_linear_map_with_a_bound_on_its_pixels() -> None:
    colours = PreviewMap(weights=((1.0, 0.0, 0.0), (0.0, 0.5, 0.0)), bias=(0.0, 0.0, 1.0))
    x0 = torch.ones(2, 8, 12)
    picture = preview(x0, colours, 0)
    assert picture.size == (12, 8)
    assert picture.getpixel((0, 0)) == (255, 128, 255)
    small = preview(x0, colours, 24)
    assert small.width * small.height <= 24
