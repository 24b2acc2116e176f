"""Pixels of any PIL image as the mesh computes with them: 8-bit sRGB, upright, opaque.

Servers decode files with this, and the SDK prepares PIL images with it, so that an image and its
file are the same picture. Needs Pillow.
"""

from __future__ import annotations

import io
import struct
from itertools import chain, product

from PIL import Image, ImageChops, ImageCms

from vtryon.errors import Reason, RequestError

MAX_PROFILE_BYTES = 4 * 1024 * 1024  # profiles of printing presses have up to 3 MiB
_SRGB_TOLERANCE = 1
_PROFILE_CLASSES = {"mntr", "scnr", "prtr", "spac"}  # links and named colours transform no picture
_PROFILE_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_LAYERED = {"LA", "La", "PA", "RGBA", "RGBa"}


def to_srgb(picture: Image.Image) -> Image.Image:
    """Give an image as upright 8-bit sRGB, its transparency laid over white.

    The orientation and the ICC profile are those of `picture.info`. A profile that is broken, too
    large or of another colour space than the pixels is ignored.

    Raises:
        RequestError: the values of mode I or F are outside of 0 to 255, or the mode is unknown.
    """
    colours, alpha = _split(picture)
    upright = _UPRIGHT.get(read_orientation(picture.info.get("exif")))
    opaque = _convert(colours, picture.info.get("icc_profile"))
    if alpha is not None:
        ground = Image.new("RGBA", opaque.size, "white")
        opaque.putalpha(alpha)
        opaque = Image.alpha_composite(ground, opaque).convert("RGB")
    if upright is not None:
        opaque = opaque.transpose(upright)
    opaque.info.clear()
    return opaque


def read_orientation(exif: object) -> int:
    """Read the orientation, 1 to 8, out of an EXIF block; 1 where it has none that is valid."""
    if not isinstance(exif, bytes):
        return 1
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        [at] = struct.unpack_from(f"{order}I", block, 4)
        [count] = struct.unpack_from(f"{order}H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == _ORIENTATION:
                [value] = struct.unpack_from(order + {3: "H", 4: "I"}[kind], block, entry + 8)
                return value if value in _UPRIGHT else 1
    except (struct.error, KeyError):  # the block is cut off, or the value is no number
        pass
    return 1


def _split(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Give the colours in a mode that a profile may describe, and the alpha channel.

    Raises:
        RequestError: no mode that can be split, or values out of range.
    """
    mode, key = picture.mode, picture.info.get("transparency")
    if mode.startswith("I;16"):
        return _high_bytes(picture), _alpha_of_16_bits(picture, key)
    if mode == "1":  # the key is 0 or 1, the pixels are 0 or 255
        grey = picture.convert("L")
        return _without_key(grey), _alpha_of_grey(grey, 255 if key == 1 else key)
    if mode == "L":
        return _without_key(picture), _alpha_of_grey(picture, key)
    if mode in _LAYERED or (mode in {"P", "RGB"} and key is not None):
        return _layers(picture)
    if mode in {"I", "F"}:
        return _checked_range(picture).convert("L"), None
    if mode in {"CMYK", "LAB"}:
        return picture, None
    if mode in {"P", "RGB", "RGBX", "YCbCr", "HSV"}:
        return picture.convert("RGB"), None
    raise RequestError(
        f"a PIL image of mode {mode} is not supported; convert it to RGB or RGBA",
        reason=Reason.PICTURE_FORMAT_UNSUPPORTED,
    )


def _layers(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Split colours from alpha, where alpha is a channel, in the palette, or one colour's."""
    if picture.mode == "RGB" and max(picture.info["transparency"]) > 255:
        raise RequestError(
            "a transparent colour of 16 bits is not supported; save the picture with an alpha "
            "channel",
            reason=Reason.PICTURE_FORMAT_UNSUPPORTED,
        )
    grey = picture.mode in {"LA", "La"}
    layered = picture.convert("LA" if grey else "RGBA")
    colours = layered.getchannel("L") if grey else layered.convert("RGB")
    return colours, layered.getchannel("A")


def _without_key(picture: Image.Image) -> Image.Image:
    """Give a copy without the transparent colour, which conversions would carry along."""
    plain = picture.copy()
    plain.info.pop("transparency", None)
    return plain


def _high_bytes(picture: Image.Image) -> Image.Image:
    """Scale 16 bits to 8; PIL's own conversion clips in some releases."""
    return Image.frombytes("L", picture.size, _bytes_of_16_bits(picture)[1::2])


def _bytes_of_16_bits(picture: Image.Image) -> bytes:
    """Give the samples, the low byte first."""
    data = picture.tobytes()
    if picture.mode == "I;16B":
        swapped = bytearray(len(data))
        swapped[::2], swapped[1::2] = data[1::2], data[::2]
        return bytes(swapped)
    return data


def _alpha_of_16_bits(picture: Image.Image, key: object) -> Image.Image | None:
    if not isinstance(key, int):
        return None
    data = _bytes_of_16_bits(picture)
    halves = ((data[1::2], key >> 8), (data[::2], key & 0xFF))
    high, low = (
        _alpha_of_grey(Image.frombytes("L", picture.size, half), wanted) for half, wanted in halves
    )
    assert high is not None
    assert low is not None
    return ImageChops.lighter(high, low)  # transparent where both bytes are the key's


def _alpha_of_grey(picture: Image.Image, key: object) -> Image.Image | None:
    if not isinstance(key, int):
        return None
    return picture.point([0 if value == key else 255 for value in range(256)])


def _checked_range(picture: Image.Image) -> Image.Image:
    least, most = picture.getextrema()
    if least < 0 or most > 255 or (picture.mode == "F" and 0 < most <= 1):  # type: ignore[operator]
        raise RequestError(
            f"a PIL image of mode {picture.mode} has values from {least} to {most}, and its range "
            "is taken to be 0 to 255; scale it, and convert it to L",
            reason=Reason.PICTURE_UNREADABLE,
        )
    return picture


def _convert(colours: Image.Image, profile: object) -> Image.Image:
    """Bring colours to sRGB by their profile, or by their mode's usual meaning."""
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE_BYTES:
        converted = _by_profile(colours, profile)
        if converted is not None:
            return converted
    if colours.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _transform(colours, ImageCms.ImageCmsProfile(lab))
    return colours if colours.mode == "RGB" else colours.convert("RGB")


def _by_profile(colours: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert by a profile; None where it does not describe these colours, or changes nothing."""
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = described.profile.xcolor_space
        if described.profile.device_class not in _PROFILE_CLASSES:
            return None
        if space != _PROFILE_SPACES[colours.mode]:
            return None
        if colours.mode in {"RGB", "L"} and _is_srgb(colours.mode, described):
            return None
        return _transform(colours, described)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _is_srgb(mode: str, profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile leaves colours as they are, by a grid of them."""
    if mode == "L":
        probe = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        colours = bytes(chain.from_iterable(product(range(0, 256, 15), repeat=3)))
        probe = Image.frombytes("RGB", (len(colours) // 3, 1), colours)
    apart = ImageChops.difference(_transform(probe, profile), probe.convert("RGB"))
    return max(apart.tobytes()) <= _SRGB_TOLERANCE


def _transform(colours: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(profile, srgb, colours.mode, "RGB")
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None
    return converted
