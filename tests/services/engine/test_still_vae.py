import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm

from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.image_vae import ChannelNorm, ImageVae
from vtryon_services.engine.placement import Placement

PLACEMENT = Placement.of("cpu", "fp32")


def load(**options) -> tuple[ImageVae, AutoencoderKLQwenImage]:
    ours = ImageVae.load(Checkpoint.open(SHIPPED_CHECKPOINT), PLACEMENT, **options)
    theirs = AutoencoderKLQwenImage.from_pretrained(SHIPPED_CHECKPOINT / "vae")
    return ours, theirs.float().eval()


@torch.no_grad()
def test_the_last_tap_is_all_of_a_causal_convolution_on_one_frame() -> None:
    ours, theirs = load()
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (theirs.config.latents_mean, theirs.config.latents_std)
    )
    mode = theirs.encode(pixels.unsqueeze(2)).latent_dist.mode()
    latents = ours.encode(pixels)
    torch.testing.assert_close(latents, ((mode - mean) / std)[:, :, 0], atol=1e-5, rtol=1e-5)

    picture = theirs.decode(mode, return_dict=False)[0][:, :, 0]
    torch.testing.assert_close(ours.decode(latents), picture, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_tiles_meet_without_a_seam() -> None:
    tiled, _ = load(tile_above_pixels=256 * 256)
    whole, _ = load()
    latents = torch.randn(1, 16, 36, 40, generator=torch.Generator().manual_seed(0)) * 0.3
    difference = (tiled.decode(latents) - whole.decode(latents)).abs()
    assert difference.mean() < 0.02  # the middle block looks at the whole tile
    assert difference.max() < 0.5


@torch.no_grad()
def test_both_ways_of_a_norm_are_the_library_s() -> None:
    theirs = QwenImageRMS_norm(24, images=False, bias=True)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    ours = ChannelNorm(theirs)
    x = torch.randn(2, 24, 1, 9, 7, generator=torch.Generator().manual_seed(1))
    x[0, :, 0, 3, 3] = 0
    x[0, :, 0, 4, 4] *= 1e-9
    for found in (ours(x), ours.in_one_pass(x), ours.by_a_product(x)):
        torch.testing.assert_close(found, theirs(x), atol=1e-5, rtol=1e-5)
