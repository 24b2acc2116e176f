"""Pictures as users have them: files, bytes, PIL images, arrays in; a `Picture` out."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard

from vtryon.errors import Reason, RequestError, SettingsError
from vtryon.extras import install_command
from vtryon.files.regular import read_regular
from vtryon.messages import ProtoType
from vtryon.types import (
    MAX_PICTURE_BYTES,
    MAX_PICTURE_PIXELS,
    MAX_PICTURE_SIDE,
    EncodedImage,
    ImageFormat,
)
from vtryon.v1 import image_pb2

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    PictureSource = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image | np.ndarray
    )


# What files of pictures are called; the first of a format is the one to write.
SUFFIXES = {
    ".png": ImageFormat.PNG,
    ".jpg": ImageFormat.JPEG,
    ".jpeg": ImageFormat.JPEG,
    ".webp": ImageFormat.WEBP,
}


@dataclass(frozen=True, slots=True)
class Picture(ProtoType):
    """An encoded picture: the bytes of a PNG, JPEG or WebP file, with format and size."""

    proto = image_pb2.InlineImage
    image: EncodedImage | None
    data: bytes

    def __repr__(self) -> str:
        width, height = self.size
        kind = self.format.upper() if self.format else "picture"
        size = f"{width}×{height}, " if width else ""
        return f"<Picture: {kind}, {size}{len(self.data)} bytes>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, bytes]:
        """Show the picture in a notebook."""
        kind = self.format or ImageFormat.PNG
        return {f"image/{kind.value}": self.data}

    def _repr_png_(self) -> bytes | None:
        """Return the PNG for notebooks that display PNG only; None for other formats."""
        return self.data if self.data.startswith(b"\x89PNG") else None

    @property
    def format(self) -> ImageFormat | None:
        """The encoding, where it was declared."""
        return self.image.format if self.image else None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; 0 where they were not declared."""
        return (self.image.width, self.image.height) if self.image else (0, 0)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bytes as they are; a reader never sees half a file."""
        return write_whole(Path(path), self.data)

    def to_pil(self) -> Image:
        """Decode to a PIL image; needs Pillow."""
        import PIL.Image

        picture = PIL.Image.open(io.BytesIO(self.data))
        picture.load()
        return picture

    def to_numpy(self) -> np.ndarray:
        """Decode to an array; needs Pillow and numpy.

        Shapes:
            result: (height, width, 3), uint8.
        """
        import numpy as np

        return np.asarray(self.to_pil().convert("RGB"))


def digest(data: bytes) -> str:
    """Return the BLAKE2b digest of an encoded picture, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file; a reader never sees half of it."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(data)
    return scratch.replace(path)


def read_picture(source: PictureSource | Picture, name: str = "picture") -> bytes:
    """Return the encoded bytes of a picture.

    A seekable file is read from its beginning. A PIL image is converted as the server would convert
    its file: EXIF orientation applied, sRGB, transparency laid over white.

    Args:
        source: a path, the bytes of a file, a binary file, a PIL image, a `Picture`, or an array of
            uint8, (height, width) or (height, width, 3 or 4).
        name: of the picture in error messages.

    Raises:
        RequestError: the source is of another type, can't be read, or exceeds the limits.
        SettingsError: the source is a PIL image or an array, and Pillow is not installed.
    """
    match source:
        case str() | os.PathLike():
            data = _read_path(os.fsdecode(source), name)
        case bytes() | bytearray() | memoryview():
            data = bytes(source)
        case Picture():
            data = source.data
        case _ if _is_pil(source):
            data = _encode(source, name)
        case _ if _is_array(source):
            data = _encode(_image_of_array(source, name), name)
        case _ if hasattr(source, "read"):
            data = _read_file(source, name)
        case _:
            raise RequestError(
                f"{name} is {_kind_of(source)}; it takes a path, the bytes of a PNG, JPEG or WebP "
                "file, an open binary file, a PIL image, or an array of uint8"
            )
    if len(data) > MAX_PICTURE_BYTES:
        raise RequestError(
            f"{name} has more than {MAX_PICTURE_BYTES} bytes, which is the limit",
            reason=Reason.PAYLOAD_TOO_LARGE,
        )
    return data


def _kind_of(source: object) -> str:
    return "None" if source is None else f"of type {type(source).__name__}"


def _is_pil(source: object) -> TypeGuard[Image]:
    pil = sys.modules.get("PIL.Image")  # where it was never imported, there is no image of it
    return pil is not None and isinstance(source, pil.Image)


def _is_array(source: object) -> TypeGuard[np.ndarray]:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(source, numpy.ndarray)


def _read_path(path: str, name: str) -> bytes:
    if path.startswith(("http://", "https://", "data:")):
        raise RequestError(f"{name} is an address; download the picture, and give its path")
    file = Path(path)
    try:
        return read_regular(file, MAX_PICTURE_BYTES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(
            f"can't read the picture {file.name[:200]!r}: {why}", reason=Reason.PICTURE_UNREADABLE
        ) from error


def _read_file(file: Any, name: str) -> bytes:
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)
        data = file.read(MAX_PICTURE_BYTES + 1)
    except (OSError, ValueError) as error:  # such as a closed file
        raise RequestError(
            f"{name} can't be read: {error}", reason=Reason.PICTURE_UNREADABLE
        ) from error
    if not isinstance(data, bytes):
        raise RequestError(f"{name} is a file of text; open it in binary mode, as 'rb'")
    return data


def _image_of_array(array: np.ndarray, name: str) -> Image:
    shape, kind = array.shape, str(array.dtype)
    channels = shape[2] if len(shape) == 3 else 1
    if kind != "uint8" or len(shape) not in {2, 3} or channels not in {1, 3, 4} or not array.size:
        raise RequestError(
            f"{name} is an array of {kind} and shape {shape}; it takes uint8 of (height, width), "
            "(height, width, 3) or (height, width, 4)"
        )
    check_size(shape[1], shape[0], name)
    plain = array.reshape(shape[:2]) if channels == 1 else array
    image: Image = _pillow().fromarray(plain)
    return image


def _encode(image: Image, name: str) -> bytes:
    check_size(*image.size, name)
    _pillow()
    from vtryon.pixels import to_srgb

    try:
        pixels = to_srgb(image)
    except RequestError:
        raise
    except Exception as error:  # images are decoded when they are used, by many a decoder
        raise RequestError(
            f"{name} can't be decoded ({type(error).__name__})", reason=Reason.PICTURE_UNREADABLE
        ) from error
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", compress_level=1)
    if buffer.tell() > MAX_PICTURE_BYTES:  # slower, and a quarter smaller
        buffer = io.BytesIO()
        pixels.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def check_size(width: int, height: int, name: str = "picture") -> None:
    """Hold a picture's size against the limits.

    Raises:
        RequestError: a side, or the area, is over its limit.
    """
    if max(width, height) > MAX_PICTURE_SIDE or width * height > MAX_PICTURE_PIXELS:
        most = f"{MAX_PICTURE_SIDE} a side and {MAX_PICTURE_PIXELS // 1_000_000} megapixels"
        raise RequestError(
            f"the {name} has {width}×{height} pixels; at most {most} are taken",
            reason=Reason.PICTURE_TOO_LARGE,
        )


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise SettingsError(
            f"PIL images and arrays need Pillow: {install_command(['cli'])}"
        ) from None
    return PIL.Image
