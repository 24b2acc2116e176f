"""What the SDK takes for a picture, and how it refuses the rest."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.pictures import difference, encoded, noise_png, png

import vtryon
from vtryon.errors import Reason, RequestError
from vtryon.pictures import Picture, read_picture
from vtryon.types import MAX_PICTURE_BYTES
from vtryon_services.engine.pictures import decode

PICTURE = png()
DRAWING = Image.radial_gradient("L").resize((48, 64)).convert("RGB")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "F", "CMYK", "YCbCr", "HSV", "LAB", "I;16"]
)
def test_an_image_of_any_mode_becomes_a_picture_that_servers_take(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((64, 48), 0x8000, np.uint16))
    else:
        image = Image.new(mode, (48, 64)) if mode == "LAB" else DRAWING.convert(mode)
    assert decode(read_picture(image)).size == (48, 64)


@pytest.mark.parametrize("mode", ["I", "F", "YCbCr", "CMYK"])
def test_an_image_of_another_mode_keeps_its_look(mode: str) -> None:
    assert difference(decode(read_picture(DRAWING.convert(mode))), DRAWING) <= 3


@pytest.mark.parametrize(("mode", "value"), [("I", 40_000), ("I", -1), ("F", 0.5), ("F", 300.0)])
def test_values_whose_range_is_unclear_are_refused_not_guessed(mode: str, value: float) -> None:
    with pytest.raises(RequestError, match="0 to 255"):
        read_picture(Image.new(mode, (4, 4), value))


def test_an_image_too_large_as_png_is_sent_as_lossless_webp(monkeypatch) -> None:
    grey = Image.effect_noise((120, 90), 60)
    image = Image.merge("RGB", (grey, grey, grey))
    monkeypatch.setattr("vtryon.pictures.MAX_PICTURE_BYTES", len(read_picture(image)) - 1)
    data = read_picture(image)
    assert data[8:12] == b"WEBP"
    assert difference(decode(data), image) == 0


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 1), (64, 48, 3), (64, 48, 4)])
def test_an_array_of_bytes_is_a_picture(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 255, np.uint8)
    assert decode(read_picture(array)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint16),
    ],
)
def test_another_array_is_refused_with_its_type_and_shape(array: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"garment is an array of .* it takes uint8"):
        read_picture(array, "garment")


def test_a_file_is_read_from_its_beginning_each_time(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(PICTURE)
    with (tmp_path / "one.png").open("rb") as file:
        assert read_picture(file) == read_picture(file) == PICTURE
    written = io.BytesIO()
    written.write(PICTURE)
    assert read_picture(written) == PICTURE


def test_a_result_is_a_picture_again() -> None:
    assert read_picture(Picture(None, PICTURE)) == PICTURE


@pytest.mark.parametrize("source", [None, 7, 1.5, ["a"], {"a": 1}, object()])
def test_what_is_no_picture_is_refused_by_the_argument_s_name(source: object) -> None:
    with pytest.raises(RequestError, match=r"person is .*; it takes a path"):
        read_picture(source, "person")  # type: ignore[arg-type]


def test_a_file_of_text_a_closed_file_and_an_address_are_refused(tmp_path: Path) -> None:
    closed = io.BytesIO(PICTURE)
    closed.close()
    for source, words in (
        (io.StringIO("text"), "binary mode"),
        (closed, "can't be read"),
        ("https://example.com/person.png", "download"),
        ("a\0b", "can't read"),
        (tmp_path, "not a regular file"),
        ("/dev/null", "not a regular file"),
    ):
        with pytest.raises(RequestError, match=words):
            read_picture(source)


def test_a_file_beyond_the_limit_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(8 * MAX_PICTURE_BYTES)
    for source in (path, io.BytesIO(bytes(MAX_PICTURE_BYTES + 1))):
        with pytest.raises(RequestError) as caught:
            read_picture(source)
        assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE


def test_an_image_that_can_t_be_decoded_is_a_request_error() -> None:
    data = noise_png(64, 64)
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as cut,
        pytest.raises(RequestError) as caught,
    ):
        read_picture(cut)
    assert caught.value.reason is Reason.PICTURE_UNREADABLE


async def test_the_second_garment_is_named_where_it_is_none(scripted: vtryon.Client) -> None:
    with pytest.raises(RequestError, match="garment 2 is None"):
        await scripted.try_on(PICTURE, [PICTURE, None])  # type: ignore[list-item]


async def test_a_profile_counts_in_both_encoders(client: vtryon.Client) -> None:
    from tests.pictures.table import IMAGE, P3, RGB

    wide, plain = encoded(IMAGE, icc_profile=P3), encoded(IMAGE)
    converted = encoded(decode(wide))
    assert difference(Image.fromarray(RGB), decode(wide)) > 20
    latents = await client.latent_encoder.encode([wide, converted, plain])
    assert bytes(latents[0].data) == bytes(latents[1].data) != bytes(latents[2].data)
    texts = await asyncio.gather(
        *(client.text_encoder.encode("a shirt", [one]) for one in (wide, converted, plain))
    )
    first, second, third = (bytes(one.positive.data) for one in texts)
    assert first == second != third
