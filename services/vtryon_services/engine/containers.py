"""Picture files, parsed before a decoder sees them.

The decoder receives only pixels and the data needed to decode them; orientation and profile are
returned separately. Other metadata is skipped unread, so it can neither cost anything nor cause a
rejection. Drivers of the decoding cost are counted first: pixels, chunks, segments, scans.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from vtryon.errors import Reason, RequestError
from vtryon.pictures import check_size
from vtryon.pixels import MAX_PROFILE_BYTES
from vtryon.types import ImageFormat
from vtryon.wire.payloads import Buffer

MAX_PARTS = 8192  # chunks of a PNG, segments of a JPEG: files of 20 MiB have 2560 or so
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten
MAX_SCANNED_PIXELS = 400_000_000  # pixels times scans: 16 scans of the largest picture
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# What else people have, by the bytes that a file begins with.
_OTHERS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "CR3"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"), "HEIC")
_MARKER = re.compile(rb"\xff[^\xff\x00\xd0-\xd7]")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_DECODED = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # the others are lossless or hierarchical
_TEM, _SOI, _EOI, _SOS, _APP1, _APP2 = 0x01, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 to APP15 but Adobe's, and comments


@dataclass(slots=True)
class Container:
    """A file reduced to the data that a decoder needs.

    Attributes:
        pieces: together the file for the decoder.
        size: width and height in pixels, from the header.
    """

    format: ImageFormat
    size: tuple[int, int] = (0, 0)
    pieces: list[Buffer] = field(default_factory=list)
    profile: bytes | None = None
    exif: bytes | None = None


def read_container(data: Buffer) -> Container:
    """Look through a file; nothing is decompressed but a profile, and that to a limit.

    Raises:
        RequestError: not PNG, JPEG or WebP; too large; cut off; or of too many parts.
    """
    view = memoryview(data)
    head = bytes(view[:64])
    if head.startswith(_PNG):
        found = _read_png(view)
    elif head.startswith(_JPEG):
        found = _read_jpeg(view)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        found = Container(ImageFormat.WEBP, _size_of_webp(head), [view])
    else:
        raise unsupported(_name_of(head))
    if not min(found.size):
        raise unreadable("its header says that it has no pixels")
    check_size(*found.size)
    return found


def unreadable(why: str) -> RequestError:
    """Make the error for a picture that is broken."""
    return RequestError(
        f"the picture can't be decoded, it is cut off or corrupt: {why}",
        reason=Reason.PICTURE_UNREADABLE,
    )


def unsupported(what: str) -> RequestError:
    """Make the error for a picture of another format."""
    return RequestError(
        f"{what} is not supported; convert to PNG, JPEG or WebP",
        reason=Reason.PICTURE_FORMAT_UNSUPPORTED,
    )


def _name_of(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        brands = [head[at : at + 4] for at in (8, *range(16, len(head) - 3, 4))]
        return next(
            (_BRANDS[one] for one in brands if one in _BRANDS), "this MP4 or HEIF container"
        )
    lowered = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for begin, name in _OTHERS:
        if head.startswith(begin) or lowered.startswith(begin):
            return name
    return "a file of an unknown format" if head else "an empty file"


def _read_png(view: memoryview) -> Container:
    found = Container(ImageFormat.PNG, pieces=[_PNG])
    depth = colours = 0
    for kind, body, whole in _chunks_of_png(view):
        holds = zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")
        if kind in {b"IHDR", b"PLTE", b"tRNS", b"IDAT"} and not holds:
            raise unreadable(f"the checksum of {kind.decode()} is wrong")
        match kind:
            case b"IHDR" if len(body) == 13:
                *found.size, depth, colours = struct.unpack_from(">IIBB", body)  # type: ignore[assignment]
                found.pieces.append(whole)
            case b"PLTE" | b"IDAT":
                found.pieces.append(whole)
            case b"tRNS":
                found.pieces.append(_transparency(body, depth, colours))
            case b"iCCP" if holds:
                found.profile = _unpack_profile(bytes(body))
            case b"eXIf" if holds:
                found.exif = bytes(body)
            case b"CgBI":
                raise unsupported("a PNG that was made for iOS (CgBI)")
    found.pieces.append(_chunk(b"IEND"))
    return found


def _chunks_of_png(view: memoryview) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Give kind, body and whole of each chunk, up to the second frame of an animation.

    Raises:
        RequestError: it is cut off, or there are too many.
    """
    at = len(_PNG)
    for _ in range(MAX_PARTS):
        if at + 12 > len(view):
            raise unreadable("it ends in the middle")
        length, kind = struct.unpack_from(">I4s", view, at)
        after = at + 12 + length
        if kind in {b"IEND", b"fdAT"}:
            return
        if after > len(view):
            raise unreadable("it ends in the middle")
        yield kind, view[at + 8 : after - 4], view[at:after]
        at = after
    raise unreadable(f"it has more than {MAX_PARTS} chunks")


def _chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _transparency(body: memoryview, depth: int, colours: int) -> bytes:
    """Adapt the chunk to Pillow, which scales grey of 2 and 4 bits, but not its key."""
    if colours == 2 and depth == 16:  # Pillow reads 8 bits of each channel, the key has 16
        raise unsupported("a transparent colour (tRNS) in a PNG of 16 bits a channel")
    if colours == 0 and depth in {2, 4} and len(body) == 2:
        [key] = struct.unpack(">H", body)
        return _chunk(b"tRNS", struct.pack(">H", key * 255 // (2**depth - 1)))
    return _chunk(b"tRNS", bytes(body))


def _unpack_profile(body: bytes) -> bytes | None:
    """Unpack a profile; None where it is broken or over the limit."""
    packed = body.partition(b"\0")[2][1:]
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(packed, MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if unpacking.eof else None


def _read_jpeg(view: memoryview) -> Container:
    found = Container(ImageFormat.JPEG, pieces=[_JPEG[:2]])
    scans, profile = 0, {}
    for marker, segment, scan in _segments_of_jpeg(view):
        body = segment[4:]
        if marker in _JPEG_FRAMES:
            found.size = _size_of_jpeg(marker, body)
        elif marker == _APP1 and found.exif is None and bytes(body[:6]) == b"Exif\0\0":
            found.exif = bytes(body)
        elif marker == _APP2 and bytes(body[:12]) == b"ICC_PROFILE\0" and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == _SOS:
            scans += 1
        if scans > MAX_SCANS or scans * prod(found.size) > MAX_SCANNED_PIXELS:
            raise unreadable(
                f"it has more than {MAX_SCANS} scans, or over {MAX_SCANNED_PIXELS // 1_000_000} "
                "megapixels in all scans; save it as a baseline JPEG"
            )
        if marker not in _JPEG_METADATA:
            found.pieces += [segment, scan]
    if sum(map(len, profile.values())) <= MAX_PROFILE_BYTES:
        found.profile = b"".join(profile[number] for number in sorted(profile)) or None
    return found


def _segments_of_jpeg(view: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield marker, segment and the bytes up to the next, until the end of the picture.

    Raises:
        RequestError: there are too many.
    """
    found = _MARKER.search(view, 2)
    for _ in range(MAX_PARTS):
        if found is None:
            return  # the decoder says whether pixels are missing
        at = found.start()
        marker = view[at + 1]
        after = at + 2
        if marker == _EOI:  # other pictures may follow, such as a depth map
            yield marker, view[at:after], view[:0]
            return
        if marker not in {_TEM, _SOI}:
            after += int.from_bytes(view[at + 2 : at + 4], "big")
        found = _MARKER.search(view, after)
        between = view[after : found.start()] if found else view[after:]
        yield marker, view[at:after], between if marker == _SOS else view[:0]
    raise unreadable(f"it has more than {MAX_PARTS} segments")


def _size_of_jpeg(marker: int, body: memoryview) -> tuple[int, int]:
    if len(body) < 6:
        raise unreadable("it ends in the middle")
    precision, height, width = struct.unpack_from(">BHH", body)
    if marker not in _JPEG_DECODED:
        raise unsupported("a lossless or hierarchical JPEG")
    if precision != 8:
        raise unsupported(f"a JPEG of {precision} bits a channel")
    check_size(width, height)
    return width, height


def _size_of_webp(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if len(head) < 30:
        raise unreadable("it ends in the middle")
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", head, 26))
    else:
        raise unreadable("no chunk of a WebP picture follows its header")
    return width, height
