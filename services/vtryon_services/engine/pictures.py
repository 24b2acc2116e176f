"""Pictures: safe decoding, bringing to size, encoding.

The header is read first: nothing is decompressed before format and size are known to be within the
limits. A picture that passes is decoded to RGB, first frame, upright, laid over white.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps

from vtryon.errors import Reason, RequestError
from vtryon.events import Fit
from vtryon.types import FitMethod, ImageFormat, ResizeFilter
from vtryon_services.engine.geometry import Geometry, Size, size_of_area

MAX_PIXELS = 25_000_000
MAX_SIDE = 8192
_FORMATS = ("PNG", "JPEG", "WEBP")


def check(data: bytes | bytearray) -> None:
    """Look at a picture's header, and nothing more.

    Raises:
        RequestError: not PNG, JPEG or WebP; too large; or unreadable so far.
    """
    _open(data).close()


def decode(data: bytes | bytearray) -> Image.Image:
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


def _open(data: bytes | bytearray) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit, below, is the stricter one
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise RequestError(
            "the picture is none of PNG, JPEG and WebP, or its header is broken",
            reason=Reason.PICTURE_FORMAT_UNSUPPORTED,
        ) from error
    except Exception as error:  # as in `decode`
        raise _unreadable(error) from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise RequestError(
            f"the picture has {width}×{height} pixels; at most {MAX_SIDE} a side "
            f"and {MAX_PIXELS // 1_000_000} megapixels are taken",
            reason=Reason.PICTURE_TOO_LARGE,
        )
    return picture


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


def bring_to_size(
    picture: Image.Image, area: int, multiple: int, geometry: Geometry, resize: ResizeFilter
) -> Image.Image:
    """Scale a picture to an area at its own aspect, or pad it to the checkpoint's one size."""
    if geometry.fit == "pad" and geometry.size is not None:
        return _pad(picture, geometry.size, resize)
    size = size_of_area(area, picture.width / picture.height, multiple)
    return _scale(picture, size, resize)


def describe_fit(picture: Image.Image, fitted: Image.Image, geometry: Geometry) -> Fit:
    """Say what `bring_to_size` did."""
    method = FitMethod.PAD if geometry.fit == "pad" else FitMethod.AREA
    return Fit("", *picture.size, *fitted.size, method)


def _scale(picture: Image.Image, size: Size, resize: ResizeFilter) -> Image.Image:
    if resize is ResizeFilter.LANCZOS:
        return picture.resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(pixels, (size.height, size.width), mode="area")
    return Image.fromarray(scaled[0].permute(1, 2, 0).round().to(torch.uint8).numpy())


def _pad(picture: Image.Image, size: Size, resize: ResizeFilter) -> Image.Image:
    if picture.size == size:
        return picture
    factor = min(size.width / picture.width, size.height / picture.height)
    inner = Size(
        max(1, round(picture.width * factor)),
        max(1, round(picture.height * factor)),
    )
    scaled = _scale(picture, inner, resize)
    ground = Image.new("RGB", size, _border_colour(scaled))
    ground.paste(scaled, ((size.width - inner.width) // 2, (size.height - inner.height) // 2))
    return ground


def _border_colour(picture: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(picture)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edges, axis=0).astype(int)
    return int(red), int(green), int(blue)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """Give pixels as the VAE takes them.

    Shapes:
        result: (3, height, width), float32 in −1 to 1.
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    return pixels / 127.5 - 1.0


def to_picture(pixels: torch.Tensor) -> Image.Image:
    """Give a picture of pixels as the VAE makes them.

    Shapes:
        pixels: (3, height, width), in −1 to 1.
    """
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1)
    array = (unit.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def encode(picture: Image.Image, format: ImageFormat, quality: int | None = None) -> bytes:  # noqa: A002
    """Encode a picture, without metadata; `quality` is for JPEG and WebP."""
    buffer = io.BytesIO()
    if format is ImageFormat.PNG:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, format.name, quality=quality or 90)
    return buffer.getvalue()
