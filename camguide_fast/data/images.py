"""Images on disk. Pillow decodes them: OpenCV returns a truncated JPEG half grey and is silent."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError

try:  # a plugin of Pillow's, taken where it is installed
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
except ImportError:
    _HEIF = ()
else:
    register_heif_opener()
    _HEIF = (".heic", ".heif")

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", *_HEIF)
_ORIENTATION = 0x0112  # of EXIF; 2 to 8: mirrored or turned, from 5 on with width and height exchanged

# Everything Pillow's decoders raise on damaged input.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
BROKEN += (Image.DecompressionBombError,)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3].

    The EXIF orientation is applied (the picture as a viewer shows it; its mask must have that size), grey is
    repeated, transparency is dropped, 16-bit grey keeps its upper byte, of an animation or of several pages the
    first is read. A file that is missing, truncated or no image is a DataError naming it.
    """
    try:
        # By handle: of a path Pillow would map the file into memory, and turn some TIFFs twice.
        with open(path, "rb") as handle, Image.open(handle) as file:
            file.load()
            # Pillow turns a TIFF as it loads it; before 10.1 it leaves the orientation there as well.
            picture = file if file.format == "TIFF" else ImageOps.exif_transpose(file)
            # Pillow 10 opens a 16-bit PNG as "I"; no PNG has more bits.
            if picture.mode.startswith("I;16") or (picture.mode == "I" and file.format == "PNG"):
                grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)  # [H, W]
                return np.repeat(grey[..., None], 3, axis=2)
            if picture.mode in ("I", "F"):
                raise DataError(f"{path}: pixels of 32 bits, expected 8 or 16")
            if picture.mode == "P":  # a palette with transparency converts cleanly only through RGBA
                picture = picture.convert("RGBA")
            return np.array(picture.convert("RGB"))
    except DataError:
        raise
    except BROKEN as error:
        raise unreadable(path, "image", error) from None


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether the file's pixels lie otherwise than `read_image` shows them, by its EXIF orientation."""
    try:
        with Image.open(path) as file:
            return file.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except BROKEN as error:
        raise unreadable(path, "image", error) from None


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) as `read_image` has it, from the head of the file as far as that says it."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            sideways = "exif" in file.info and file.getexif().get(_ORIENTATION, 1) in range(5, 9)
            return (width, height) if sideways else (height, width)
    except BROKEN as error:
        raise unreadable(path, "image", error) from None


def unreadable(path: str | os.PathLike[str], kind: str, error: BaseException) -> DataError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: not a readable {kind} ({reason})")
