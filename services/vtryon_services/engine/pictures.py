"""Pictures: safe decoding and encoding.

The header is read first: nothing is decompressed before format and size are known to be within the
limits. A picture that passes is decoded to RGB, first frame, upright, laid over white.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vtryon.errors import Reason, RequestError
from vtryon.payloads import Buffer
from vtryon.types import ImageFormat

MAX_PIXELS = 25_000_000
MAX_SIDE = 8192
_FORMATS = ("PNG", "JPEG", "WEBP")


def check(data: Buffer) -> None:
    """Look at a picture's header, and nothing more.

    Raises:
        RequestError: not PNG, JPEG or WebP; too large; or unreadable so far.
    """
    _open(data).close()


def decode(data: Buffer) -> Image.Image:
    """Decode a picture to RGB.

    Raises:
        RequestError: as `check`, and where the pixels can't be decoded.
    """
    try:
        with _open(data) as checksum:
            checksum.verify()
        with _open(data) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _to_rgb(upright)
    except RequestError:
        raise
    except Exception as error:  # decoders of three formats raise whatever they like
        raise _unreadable(error) from error


def _open(data: Buffer) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit, below, is the stricter one
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise RequestError(
            "the picture is none of PNG, JPEG and WebP, or its header is broken",
            reason=Reason.PICTURE_FORMAT_UNSUPPORTED,
        ) from error
    except Image.DecompressionBombError as error:  # beyond even the library's limit
        raise _too_large("more") from error
    except Exception as error:  # as in `decode`
        raise _unreadable(error) from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _too_large(f"{width}×{height}")
    return picture


def _too_large(size: str) -> RequestError:
    return RequestError(
        f"the picture has {size} pixels; at most {MAX_SIDE} a side "
        f"and {MAX_PIXELS // 1_000_000} megapixels are taken",
        reason=Reason.PICTURE_TOO_LARGE,
    )


def _unreadable(error: Exception) -> RequestError:
    return RequestError(
        f"the picture can't be decoded, it is cut off or corrupt ({type(error).__name__})",
        reason=Reason.PICTURE_UNREADABLE,
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a channel; PIL would clip, not scale
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    coloured = picture.convert("RGBA")
    ground = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(ground, coloured).convert("RGB")


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
