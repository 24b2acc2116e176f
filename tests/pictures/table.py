"""Pictures as people have them, and the pixels that each is."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from tests.pictures.files import (
    before_end,
    behind_header,
    behind_start,
    chunk,
    exif,
    png,
    press_profile,
    profile,
    segment,
)
from tests.support.pictures import encoded

WIDTH, HEIGHT = 48, 64
P3 = profile(b"RGB ", "rTRC", "gTRC", "bTRC")
GREY = profile(b"GRAY", "kTRC", primaries=False)
PRESS = press_profile()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_FLIPS = {
    2: lambda one: one[:, ::-1],
    3: lambda one: one[::-1, ::-1],
    4: lambda one: one[::-1],
    5: lambda one: one.transpose(1, 0, 2),
    6: lambda one: np.rot90(one, -1),
    7: lambda one: one[::-1, ::-1].transpose(1, 0, 2),
    8: lambda one: np.rot90(one),
}


@dataclass(frozen=True)
class Pictured:
    """A file, the pixels that it is, and how far a lossy format may be from them on average.

    `image` tells whether Pillow reads the same from the file: it does not know of all that is
    refused, and loses what a key of grey means.
    """

    name: str
    data: bytes
    pixels: np.ndarray
    tolerance: float = 0.0
    image: bool = True


def _drawing() -> np.ndarray:
    """Three ramps, so that every turn and every swap of channels shows."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 4, columns * 5, 255 - rows * 2 - columns], -1).astype(np.uint8)


RGB = _drawing()
L = RGB[..., 1]
IMAGE = Image.fromarray(RGB)
GREY_IMAGE = Image.fromarray(L)
ALPHA = np.where(np.add(*np.mgrid[0:HEIGHT, 0:WIDTH]) % 16 < 8, 255, 96).astype(np.uint8)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def _on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(colours * share + 255 * (1 - share))


def _converted(image: Image.Image, icc: bytes) -> np.ndarray:
    given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    srgb = ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, given, srgb, outputMode="RGB"))


def _plain_formats() -> Iterator[Pictured]:
    yield Pictured("a PNG", encoded(IMAGE), RGB)
    yield Pictured("an interlaced PNG", png(RGB, 8, 2, interlaced=True), RGB)
    yield Pictured("a grey PNG", encoded(GREY_IMAGE), _rgb(L))
    pair = GREY_IMAGE.point(lambda value: 255 if value > 100 else 0)
    yield Pictured("a PNG of 1 bit", encoded(pair.convert("1")), _rgb(np.asarray(pair)))
    few = (L // 64).astype(np.uint8)
    yield Pictured("a grey PNG of 2 bits", png(few[..., None], 2, 0), _rgb(few * 85))
    some = (L // 16).astype(np.uint8)
    yield Pictured("a grey PNG of 4 bits", png(some[..., None], 4, 0), _rgb(some * 17))
    mapped = IMAGE.quantize(64)
    yield Pictured("a palette PNG", encoded(mapped), np.asarray(mapped.convert("RGB")))
    deep = RGB.astype(np.uint16) * 256 + 77
    yield Pictured("a PNG of 16 bits a channel", png(deep, 16, 2), RGB)
    yield Pictured("a grey PNG of 16 bits", png(deep[..., 1:2], 16, 0), _rgb(L))
    yield Pictured("a JPEG", jpeg(IMAGE), RGB, 3)
    yield Pictured("a progressive JPEG", jpeg(IMAGE, progressive=True), RGB, 3)
    yield Pictured("a JPEG of halved colours", jpeg(IMAGE, subsampling=2), RGB, 4)
    yield Pictured("a grey JPEG", jpeg(GREY_IMAGE), _rgb(L), 3)
    yield Pictured("a lossy WebP", encoded(IMAGE, "WEBP", quality=95), RGB, 4)
    yield Pictured("a lossless WebP", encoded(IMAGE, "WEBP", lossless=True), RGB)
    yield Pictured(
        "one pixel", encoded(Image.new("RGB", (1, 1), "teal")), np.array([[[0, 128, 128]]])
    )


def jpeg(image: Image.Image, **how: object) -> bytes:
    return encoded(image, "JPEG", **{"quality": 97, "subsampling": 0, **how})


def _inks() -> Iterator[Pictured]:
    inks = IMAGE.convert("CMYK")
    bare = np.asarray(inks.convert("RGB"))
    data = jpeg(inks)
    yield Pictured("a CMYK JPEG, inverted as Adobe's", data, bare, 3)
    ycck = bytearray(jpeg(Image.merge("CMYK", (*IMAGE.convert("YCbCr").split(), _black()))))
    at = ycck.index(b"Adobe")
    ycck[at + 11] = 2  # the first three channels are YCC
    inverted = np.asarray(IMAGE)[..., :3].astype(int)
    yield Pictured("a YCCK JPEG", bytes(ycck), 255 - _ycc_of_inverted(inverted), 6)
    yield Pictured(
        "a CMYK JPEG with a profile", jpeg(inks, icc_profile=PRESS), _converted(inks, PRESS), 3
    )


def _black() -> Image.Image:
    return Image.new("L", IMAGE.size, 0)


def _ycc_of_inverted(colours: np.ndarray) -> np.ndarray:
    """What the inks come to: Pillow writes CMYK inverted, so the channels were turned about."""
    ycc = 255 - np.asarray(Image.fromarray(colours.astype(np.uint8)).convert("YCbCr"))
    return np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB")).astype(int)


def _transparent() -> Iterator[Pictured]:
    layered = Image.fromarray(np.dstack([RGB, ALPHA]))
    over = _on_white(RGB, ALPHA)
    yield Pictured("a PNG with alpha", encoded(layered), over)
    yield Pictured("a WebP with alpha", encoded(layered, "WEBP", lossless=True, exact=True), over)
    grey = Image.merge("LA", (GREY_IMAGE, Image.fromarray(ALPHA)))
    yield Pictured("a grey PNG with alpha", encoded(grey), _on_white(_rgb(L), ALPHA))
    deep = np.dstack([RGB, ALPHA]).astype(np.uint16) * 257
    yield Pictured("a PNG with alpha of 16 bits", png(deep, 16, 6), over)
    yield Pictured(
        "a grey PNG with alpha of 16 bits", png(deep[..., [1, 3]], 16, 4), _on_white(_rgb(L), ALPHA)
    )
    mapped = IMAGE.quantize(16)
    places, colours = np.asarray(mapped), np.asarray(mapped.convert("RGB"))
    shares = bytes(range(0, 256, 17))
    yield Pictured(
        "a palette PNG with alpha",
        encoded(mapped, transparency=shares),
        _on_white(colours, np.frombuffer(shares, np.uint8)[places]),
    )
    yield Pictured(
        "a palette PNG with a transparent entry",
        encoded(mapped, transparency=3),
        _keyed(colours, places == 3),
    )
    yield from _keys()


def _keys() -> Iterator[Pictured]:
    red, green, blue = (int(one) for one in RGB[10, 10])
    yield Pictured(
        "a PNG with a transparent colour",
        encoded(IMAGE, transparency=(red, green, blue)),
        _keyed(RGB, (RGB[10, 10] == RGB).all(-1)),
    )
    yield Pictured(
        "a grey PNG with a transparent value",
        encoded(GREY_IMAGE, transparency=50),
        _keyed(_rgb(L), L == 50),
    )
    pair = (L > 100).astype(np.uint8)
    for key, name in ((0, "black"), (1, "white")):
        data = png(pair[..., None], 1, 0, chunk(b"tRNS", struct.pack(">H", key)))
        yield Pictured(
            f"a PNG of 1 bit, {name} transparent", data, _keyed(_rgb(pair * 255), pair == key)
        )
    for depth in (2, 4):
        few = (L >> 8 - depth).astype(np.uint8)
        data = png(few[..., None], depth, 0, chunk(b"tRNS", struct.pack(">H", 1)))
        full = _rgb(few * (255 // (2**depth - 1)))
        yield Pictured(
            f"a grey PNG of {depth} bits with a transparent value",
            data,
            _keyed(full, few == 1),
            image=False,
        )
    deep = RGB[..., 1:2].astype(np.uint16) * 256 + (np.arange(WIDTH) % 2)[:, None]
    key = chunk(b"tRNS", struct.pack(">H", int(deep[0, 10, 0])))
    yield Pictured(
        "a grey PNG of 16 bits with a transparent value",
        png(deep, 16, 0, key),
        _keyed(_rgb(L), deep[..., 0] == deep[0, 10, 0]),
    )


def _keyed(colours: np.ndarray, clear: np.ndarray) -> np.ndarray:
    return np.where(clear[..., None], 255, colours)


def _turned() -> Iterator[Pictured]:
    for value, turn in _FLIPS.items():
        yield Pictured(
            f"a JPEG of orientation {value}", jpeg(IMAGE, exif=exif(value)), turn(RGB), 3
        )
    block = exif(6)
    turned = np.rot90(RGB, -1)
    yield Pictured("a PNG of orientation 6", behind_header(encoded(IMAGE), _exif(block)), turned)
    yield Pictured(
        "a PNG with EXIF behind its pixels", before_end(encoded(IMAGE), _exif(block)), turned
    )
    yield Pictured(
        "a WebP of orientation 6", encoded(IMAGE, "WEBP", lossless=True, exif=block), turned
    )
    yield Pictured("EXIF of the other byte order", jpeg(IMAGE, exif=exif(6, ">")), turned, 3)
    yield Pictured("an orientation of 32 bits", jpeg(IMAGE, exif=exif(6, kind=4)), turned, 3)
    for value in (0, 1, 9, 65535):
        yield Pictured(f"an orientation {value}", jpeg(IMAGE, exif=exif(value)), RGB, 3)
    cut = block[:20]
    yield Pictured("EXIF that is cut off", jpeg(IMAGE, exif=cut), RGB, 3)
    yield Pictured("EXIF that is none", jpeg(IMAGE, exif=b"Exif\0\0" + b"nonsense" * 9), RGB, 3)
    yield Pictured("EXIF of too many entries", jpeg(IMAGE, exif=exif(1, entries=9999)), RGB, 3)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'
    yield Pictured("an orientation in XMP", behind_start(jpeg(IMAGE), segment(0xE1, xmp)), RGB, 3)


def _exif(block: bytes) -> bytes:
    return chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))


def _profiled() -> Iterator[Pictured]:
    wide = _converted(IMAGE, P3)
    yield Pictured("a PNG with a wide profile", encoded(IMAGE, icc_profile=P3), wide)
    yield Pictured("a JPEG with a wide profile", jpeg(IMAGE, icc_profile=P3), wide, 4)
    data = encoded(IMAGE, "WEBP", lossless=True, icc_profile=P3)
    yield Pictured("a WebP with a wide profile", data, wide)
    layered = Image.fromarray(np.dstack([RGB, ALPHA]))
    yield Pictured(
        "a PNG with alpha and a profile", encoded(layered, icc_profile=P3), _on_white(wide, ALPHA)
    )
    mapped = IMAGE.quantize(64)
    yield Pictured(
        "a palette PNG with a profile",
        encoded(mapped, icc_profile=P3),
        _converted(mapped.convert("RGB"), P3),
    )
    grey = _converted(GREY_IMAGE, GREY)
    yield Pictured("a grey PNG with a profile", encoded(GREY_IMAGE, icc_profile=GREY), grey)
    yield Pictured("a grey JPEG with a profile", jpeg(GREY_IMAGE, icc_profile=GREY), grey, 4)
    yield Pictured("a PNG that says it is sRGB", encoded(IMAGE, icc_profile=SRGB), RGB)
    yield Pictured("a profile of another space", encoded(IMAGE, icc_profile=GREY), RGB)
    yield Pictured("a profile that is broken", encoded(IMAGE, icc_profile=P3[:200]), RGB)
    yield Pictured("a profile that is none", jpeg(IMAGE, icc_profile=b"nonsense"), RGB, 3)
    turned = jpeg(IMAGE, icc_profile=P3, exif=exif(8))
    yield Pictured("a profile and an orientation", turned, np.rot90(wide), 4)
    body = b"a\0\0" + zlib.compress(bytes(64 * 2**20), 9)
    data = behind_header(encoded(IMAGE), chunk(b"iCCP", body))
    yield Pictured("a profile of 64 MiB", data, RGB, image=False)


def _beside_the_pixels() -> Iterator[Pictured]:
    plain = encoded(IMAGE)
    text = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"a node and its values, " * 90_000))
    yield Pictured("2 MB of text, packed", behind_header(plain, text), RGB, image=False)
    info = PngInfo()
    info.add_itxt("prompt", "x" * 3_000_000, zip=True)
    yield Pictured("3 MB of international text", encoded(IMAGE, pnginfo=info), RGB, image=False)
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * 2**20), 9))
    yield Pictured("a bomb of text", behind_header(plain, bomb), RGB, image=False)
    broken = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    broken[-1] ^= 0xFF
    yield Pictured(
        "text with a wrong checksum", behind_header(plain, bytes(broken)), RGB, image=False
    )
    gamma = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"pHYs", struct.pack(">IIB", 1, 1, 1))
    yield Pictured("gamma and resolution", behind_header(plain, gamma), RGB)
    photo = jpeg(IMAGE)
    comments = [segment(0xFE, b"c" * 60_000) for _ in range(4)]
    yield Pictured("a JPEG with long comments", behind_start(photo, *comments), RGB, 3)
    odd = segment(0xE0, b"JFXX") + segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 3)
    yield Pictured("a JPEG with broken segments", behind_start(photo, odd), RGB, 3)
    yield Pictured("a JPEG with a ZIP behind it", photo + b"PK\3\4" + bytes(500), RGB, 3)
    yield Pictured("a PNG with a ZIP behind it", plain + b"PK\3\4" + bytes(500), RGB)


def _moving() -> Iterator[Pictured]:
    others = [Image.new("RGB", IMAGE.size, colour) for colour in ("red", "lime")]
    how = {"save_all": True, "append_images": others}
    yield Pictured("an animated PNG", encoded(IMAGE, **how), RGB)
    yield Pictured("an animated WebP", encoded(IMAGE, "WEBP", lossless=True, **how), RGB)
    yield Pictured("two pictures in an MPO", encoded(IMAGE, "MPO", quality=97, **how), RGB, 4)


TAKEN: list[Pictured] = [
    *_plain_formats(),
    *_inks(),
    *_transparent(),
    *_turned(),
    *_profiled(),
    *_beside_the_pixels(),
    *_moving(),
]
