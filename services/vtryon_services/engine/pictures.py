"""Pictures: safe decoding and encoding.

The file is looked through first: nothing is decompressed before format, size and number of parts
are known to be within the limits. A picture that passes is decoded to sRGB, first frame, upright,
laid over white.
"""

from __future__ import annotations

import io

from PIL import Image

from vtryon.errors import RequestError
from vtryon.pixels import to_srgb
from vtryon.types import ImageFormat
from vtryon.wire.payloads import Buffer
from vtryon_services.engine.containers import read_container, unreadable


def check(data: Buffer) -> None:
    """Look through a picture's file, and decode nothing.

    Raises:
        RequestError: not PNG, JPEG or WebP; too large; of too many parts; or cut off.
    """
    read_container(data)


def decode(data: Buffer) -> Image.Image:
    """Decode a picture to sRGB.

    Raises:
        RequestError: as `check`, and where the pixels can't be decoded.
    """
    found = read_container(data)
    try:
        file = io.BytesIO(b"".join(found.pieces))
        with Image.open(file, formats=(found.format.name,)) as picture:
            picture.load()
            own = {"exif": found.exif, "icc_profile": found.profile}
            picture.info |= {name: value for name, value in own.items() if value is not None}
            return to_srgb(picture)
    except RequestError:
        raise
    except Exception as error:  # decoders of three formats raise whatever they like
        raise unreadable(type(error).__name__) from error


def encode(picture: Image.Image, format: ImageFormat, quality: int | None = None) -> bytes:  # noqa: A002
    """Encode a picture, without metadata; `quality` is for JPEG and WebP."""
    buffer = io.BytesIO()
    picture = picture.copy()
    picture.info.clear()
    if format is ImageFormat.PNG:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, format.name, quality=quality or 90)
    return buffer.getvalue()
