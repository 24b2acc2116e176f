"""What a console and a notebook show of results."""

from __future__ import annotations

from tests.support.pictures import encoded, png

import vtryon
from vtryon.events import Chunk, Preview, ResumeChunk
from vtryon.pictures import Picture
from vtryon.tensors import Tensor
from vtryon.types import DataType, EncodedImage, ImageFormat, PayloadKind, TensorSpec


async def test_a_result_is_shown_in_a_line_and_in_a_notebook(scripted: vtryon.Client) -> None:
    result = await scripted.try_on(png(), steps=1)
    assert len(repr(result)) < 120
    assert f"seed {result.seed}" in repr(result)
    assert result._repr_png_() == result.picture.data


def test_values_with_bytes_are_shown_without_them() -> None:
    data = bytes(10_000)
    declared = EncodedImage(ImageFormat.JPEG, 96, 128)
    assert repr(Picture(declared, data)) == "<Picture: JPEG, 96×128, 10000 bytes>"
    assert repr(Picture(None, data)) == "<Picture: picture, 10000 bytes>"
    tensor = Tensor(TensorSpec(DataType.FP32, (50, 50)), data)
    assert repr(tensor) == "<Tensor: FP32 (50, 50), 10000 bytes>"
    for value in (
        Chunk(0, 0, data),
        ResumeChunk(1, 0, 10_000, data),
        Preview(1, 2, Picture(None, data)),
        tensor.outgoing(PayloadKind.LATENTS),
    ):
        assert len(repr(value)) < 300


def test_a_notebook_shows_a_picture_of_any_format() -> None:
    from PIL import Image

    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    shown = Picture(EncodedImage(ImageFormat.JPEG), jpeg)._repr_mimebundle_()
    assert shown == {"image/jpeg": jpeg}
    assert Picture(EncodedImage(ImageFormat.JPEG), jpeg)._repr_png_() is None
