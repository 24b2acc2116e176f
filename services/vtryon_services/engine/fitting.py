"""Bringing pictures to a checkpoint's size, and to and from the VAE's pixels."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from vtryon.errors import Reason, RequestError
from vtryon.events import Fit
from vtryon.types import FitMethod, ResizeFilter
from vtryon_services.engine.geometry import Geometry, Size, size_of_area

# How much larger than the area a picture may become by rounding its short side up.
_MAX_EXCESS = 1.5


def bring_to_size(
    picture: Image.Image, area: int, multiple: int, geometry: Geometry, resize: ResizeFilter
) -> Image.Image:
    """Scale a picture to an area at its own aspect, or pad it to the checkpoint's one size.

    Raises:
        RequestError: the picture is so narrow that rounding would make it far larger.
    """
    if geometry.fit == "pad" and geometry.size is not None:
        return _pad(picture, geometry.size, resize)
    size = size_of_area(area, picture.width / picture.height, multiple)
    if size.width * size.height > _MAX_EXCESS * area:
        raise RequestError(
            f"a picture of {picture.width}×{picture.height} is too narrow to encode: "
            f"its short side would be below {multiple} pixels",
            reason=Reason.PICTURE_TOO_LARGE,
        )
    return _scale(picture, size, resize)


def describe_fit(picture: Image.Image, fitted: Image.Image, geometry: Geometry) -> Fit:
    """Describe the resize of `bring_to_size`."""
    method = FitMethod.PAD if geometry.fit == "pad" else FitMethod.AREA
    return Fit("", *picture.size, *fitted.size, method)


def _scale(picture: Image.Image, size: Size, resize: ResizeFilter) -> Image.Image:
    if resize is ResizeFilter.LANCZOS:
        return picture.resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    channels = [_mean(channel, size) for channel in pixels]  # one at a time, for large pictures
    return Image.fromarray(torch.stack(channels, dim=-1).numpy())


def _mean(channel: torch.Tensor, size: Size) -> torch.Tensor:
    shape = (size.height, size.width)
    scaled = torch.nn.functional.interpolate(channel[None, None].float(), shape, mode="area")
    return scaled[0, 0].round().to(torch.uint8)


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
    """Convert pixels to the VAE's input.

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
