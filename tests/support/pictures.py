"""Pictures for tests."""

import io
import os

import numpy as np
from PIL import Image


def png(width: int = 48, height: int = 64, colour: str = "teal", **options) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), "PNG", **options)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise_png(width: int, height: int) -> bytes:
    """A picture that no compressor makes smaller."""
    pixels = np.frombuffer(os.urandom(width * height * 3), np.uint8).reshape(height, width, 3)
    return encoded(Image.fromarray(pixels), "PNG", compress_level=0)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel."""
    pair = [np.asarray(picture.convert("RGB")).astype(int) for picture in (one, other)]
    assert pair[0].shape == pair[1].shape
    return int(np.abs(pair[0] - pair[1]).max())


def decoded(data: bytes) -> np.ndarray:
    """The pixels of an encoded picture: (height, width, 3), uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
