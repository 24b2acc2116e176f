import io
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.support.pictures import encoded, png

import vtryon
from vtryon.errors import Reason, RequestError
from vtryon.types import FitMethod, ImageFormat, ResizeFilter
from vtryon_services.engine import fitting, pictures
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.families.qwen_image_edit import QwenImageEditPlus
from vtryon_services.engine.geometry import Geometry, Size, size_of_area
from vtryon_services.engine.latent_encoder import VaeEncoder
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.text_encoder import PromptEncoder

SMALL = Image.new("RGB", (40, 30), (10, 200, 30))


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that say they are an enormous picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    parts = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_read(kind: str) -> None:
    picture = pictures.decode(encoded(SMALL, kind))
    assert (picture.mode, picture.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(RequestError) as caught:
        pictures.decode(encoded(SMALL, kind))
    assert caught.value.reason is Reason.PICTURE_FORMAT_UNSUPPORTED


@pytest.mark.parametrize(
    "size", [(8193, 1), (1, 8193), (1, 30000), (8000, 8000), (2**31 - 1, 2**31 - 1)]
)
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError) as caught:
        pictures.check(png_claiming(*size))
    assert caught.value.reason is Reason.PICTURE_TOO_LARGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("sixteenths", range(16))
def test_a_picture_cut_off_at_any_sixteenth_is_refused(kind: str, sixteenths: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = encoded(noise, kind)
    with pytest.raises(RequestError) as caught:
        pictures.decode(whole[: len(whole) * sixteenths // 16])
    assert caught.value.reason in {Reason.PICTURE_UNREADABLE, Reason.PICTURE_FORMAT_UNSUPPORTED}


def test_a_wrong_checksum_is_noticed() -> None:
    data = bytearray(png())
    data[-20] ^= 0xFF  # in IDAT
    with pytest.raises(RequestError):
        pictures.decode(data)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"])
)
def test_any_bytes_are_a_picture_or_a_request_error(tail: bytes, head: bytes) -> None:
    with pytest.raises(RequestError):
        pictures.decode(head + tail)


def test_a_text_bomb_costs_nothing_and_refuses_nothing() -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("bomb", "x" * (80 * 1024 * 1024), zip=True)
    data = encoded(SMALL, pnginfo=text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert pictures.decode(data).getpixel((0, 0)) == (10, 200, 30)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pictures.decode(encoded(SMALL, "JPEG", exif=exif)).size == (30, 40)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pictures.decode(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert pictures.decode(encoded(grey)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert pictures.decode(encoded(deep)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_of_png_comes_out_as_rgb(mode: str) -> None:
    assert pictures.decode(encoded(SMALL.convert(mode))).mode == "RGB"


def test_cmyk_comes_out_as_rgb() -> None:
    assert pictures.decode(encoded(SMALL.convert("CMYK"), "JPEG")).mode == "RGB"


def test_only_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    moving = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert pictures.decode(moving).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", list(ImageFormat))
def test_what_is_encoded_carries_no_metadata(kind: ImageFormat) -> None:
    picture = SMALL.copy()
    picture.info["comment"] = b"secret"
    data = pictures.encode(picture, kind, None if kind is ImageFormat.PNG else 80)
    assert b"secret" not in data
    assert not Image.open(io.BytesIO(data)).getexif()


def test_areas_are_those_of_diffusers() -> None:
    assert size_of_area(1024 * 1024, 1, 32) == (1024, 1024)
    assert size_of_area(1024 * 1024, 3 / 4, 32) == (896, 1184)
    assert size_of_area(384 * 384, 16 / 9, 32) == (512, 288)


def test_padding_keeps_the_aspect_and_fills_with_the_border() -> None:
    geometry = Geometry(fit="pad", size=Size(96, 128))
    wide = Image.new("RGB", (200, 100), (9, 8, 7))
    fitted = fitting.bring_to_size(wide, 0, 32, geometry, ResizeFilter.LANCZOS)
    assert fitted.size == (96, 128)
    assert (np.asarray(fitted) == (9, 8, 7)).all()
    fit = fitting.describe_fit(wide, fitted, geometry)
    assert fit.changed
    assert fit.method is FitMethod.PAD


def test_the_area_filter_is_the_mean_of_what_it_covers() -> None:
    board = Image.fromarray(np.array([[0, 100], [200, 100]], np.uint8).repeat(32, 0).repeat(32, 1))
    fitted = fitting.bring_to_size(board.convert("RGB"), 32 * 32, 32, Geometry(), ResizeFilter.AREA)
    assert fitted.size == (32, 32)
    assert fitted.getpixel((5, 5)) == (0, 0, 0)
    assert fitted.getpixel((5, 25)) == (200, 200, 200)
    fine = Image.fromarray(np.tile(np.array([[0, 100], [200, 120]], np.uint8), (32, 32)))
    fitted = fitting.bring_to_size(fine.convert("RGB"), 32 * 32, 32, Geometry(), ResizeFilter.AREA)
    assert (np.asarray(fitted) == 105).all()


async def test_comfys_references_are_rounded_to_sixteen(tmp_path) -> None:
    from tests.support.checkpoints import with_geometry

    from vtryon.embedded import embedded_mesh

    geometry = Geometry(reference_area=96 * 128, condition_area=96 * 128)
    folder = with_geometry(tmp_path / "checkpoint", geometry)
    shapes = []
    async with embedded_mesh(checkpoint=folder) as target, vtryon.Client(target) as client:
        for profile in (vtryon.Profile.DIFFUSERS, vtryon.Profile.COMFY):
            numerics = vtryon.Numerics(profile=profile)
            [latents] = await client.latent_encoder.encode([png(100, 100)], numerics=numerics)
            shapes.append(latents.spec.shape[1:])
    assert shapes == [(12, 12), (14, 14)]


@pytest.mark.parametrize(
    ("size", "theirs", "ours"),
    [((800, 1328), "792×1320", (800, 1312)), ((1000, 750), "1184×888", (1184, 880))],
)
def test_where_comfy_has_another_reference_size_the_fit_says_so(size, theirs, ours) -> None:
    engine = VaeEncoder(None, QwenImageEditPlus(Geometry()), "")  # type: ignore[arg-type]
    for profile in vtryon.Profile:
        numerics = resolve(vtryon.Numerics(profile=profile))
        pixels, fit = engine.fit(Image.new("RGB", size), numerics)
        if profile is vtryon.Profile.COMFY:
            assert (fit.to_width, fit.to_height) == ours == tuple(pixels.shape[:0:-1])
            assert fit.note.startswith(f"ComfyUI scales it to {theirs};")
        else:
            assert not fit.note


def test_the_same_reference_size_as_comfy_needs_no_note() -> None:
    engine = VaeEncoder(None, QwenImageEditPlus(Geometry()), "")  # type: ignore[arg-type]
    numerics = resolve(vtryon.Numerics(profile=vtryon.Profile.COMFY))
    assert not engine.fit(Image.new("RGB", (512, 512)), numerics).fit.note


def test_comfys_pictures_for_the_text_encoder_are_not_rounded() -> None:
    checkpoint = Checkpoint.open(SHIPPED_CHECKPOINT)
    encoder = PromptEncoder.load(checkpoint, Placement.of("cpu", "fp32"))
    # In place of the shipped checkpoint's small pictures of one size: 384² at their own aspect.
    encoder.family = QwenImageEditPlus(Geometry())
    encoder._processor = type(encoder._processor)()
    grids = [
        encoder.see([Image.new("RGB", (100, 75))], resolve(vtryon.Numerics(profile=profile))).grids
        for profile in (vtryon.Profile.COMFY, vtryon.Profile.DIFFUSERS)
    ]
    # 443×333 against 448×320, each to multiples of 28 and in patches of 14.
    assert [grid.tolist() for grid in grids] == [[[1, 24, 32]], [[1, 22, 32]]]


def test_a_polyglot_is_the_picture_that_it_begins_with() -> None:
    archive = b"PK\x03\x04" + b"\0" * 500 + b"PK\x05\x06" + b"\0" * 18
    assert pictures.decode(png(40, 30) + archive).size == (40, 30)


def test_ten_thousand_frames_cost_no_more_than_the_first() -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    moving = encoded(red, save_all=True, append_images=[blue, red] * 5_000)
    started = time.perf_counter()
    assert pictures.decode(moving).getpixel((0, 0)) == (255, 0, 0)
    assert time.perf_counter() - started < 1


def test_a_bomb_of_pixels_is_read_no_further_than_its_size() -> None:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    bomb = zlib.compress(b"\0" * (256 * 1024 * 1024), 9)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert pictures.decode(data).size == (8, 8)
    except RequestError as error:
        assert error.reason is Reason.PICTURE_UNREADABLE
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8192, 1), (1, 8192)])
def test_the_smallest_and_narrowest_pictures_are_decoded(size: tuple[int, int]) -> None:
    picture = pictures.decode(png(*size))
    assert picture.size == size
    padded = Geometry(fit="pad", size=Size(96, 128))
    fitted = fitting.bring_to_size(picture, 0, 32, padded, ResizeFilter.LANCZOS)
    assert fitted.size == (96, 128)


def test_a_picture_too_narrow_for_its_area_is_refused() -> None:
    narrow = Image.new("RGB", (1, 4000))
    with pytest.raises(RequestError, match="too narrow"):
        fitting.bring_to_size(narrow, 1024 * 1024, 32, Geometry(), ResizeFilter.LANCZOS)
    square = fitting.bring_to_size(
        Image.new("RGB", (1, 1)), 128 * 128, 32, Geometry(), ResizeFilter.AREA
    )
    assert square.size == (128, 128)
