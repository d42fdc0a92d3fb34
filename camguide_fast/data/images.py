"""Images and masks on disk. Pillow decodes them: OpenCV returns a truncated JPEG half grey and is silent."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ..errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
IGNORE = 255

# Everything Pillow's decoders raise on damaged input.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
_BROKEN += (Image.DecompressionBombError,)


def _voc_palette() -> np.ndarray:
    colours = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):  # bits 0, 1, 2 of the label go to red, green, blue, most significant place first
            for channel in range(3):
                colours[label, channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


VOC_PALETTE = _voc_palette()  # uint8 [256, 3], RGB by label, as in the VOC development kit
VOC_PALETTE.setflags(write=False)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3].

    The EXIF orientation is applied (the picture as a viewer shows it; its mask must have that size), grey is
    repeated, transparency is dropped, 16-bit grey keeps its upper byte, of an animation the first frame is
    read. A file that is missing, truncated or no image is a DataError naming it.
    """
    try:
        with Image.open(path) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):
                grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)  # [H, W]
                return np.repeat(grey[..., None], 3, axis=2)
            if picture.mode in ("I", "F"):
                raise DataError(f"{path}: pixels of 32 bits, expected 8 or 16")
            if picture.mode == "P":  # a palette with transparency converts cleanly only through RGBA
                picture = picture.convert("RGBA")
            return np.array(picture.convert("RGB"))
    except DataError:
        raise
    except _BROKEN as error:
        raise _unreadable(path, "image", error) from None


def read_mask(path: str | os.PathLike[str], num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask file as uint8 [H, W]: 0 background, 1..num_classes, 255 ignored.

    Palette and grey PNGs hold the labels themselves; RGB(A) masks are read through the VOC palette.
    A DataError names the file if it does not decode, if `size` = (H, W) is given and differs, or if a label
    is neither a class nor 255.
    """
    try:
        with Image.open(path) as file:
            file.load()
            if file.mode in ("RGB", "RGBA"):
                labels = _labels_of_colours(np.asarray(file.convert("RGB")), path)
            elif file.mode in ("P", "L", "1") or file.mode.startswith("I"):
                labels = np.array(file)  # [H, W]
            else:
                raise DataError(f"{path}: a mask must be a palette, grey or RGB image, found mode {file.mode}")
    except DataError:
        raise
    except _BROKEN as error:
        raise _unreadable(path, "mask", error) from None
    if size is not None and labels.shape != tuple(size):
        (h, w), (ih, iw) = labels.shape, size
        raise DataError(f"{path}: the mask is {w}x{h}, its image is {iw}x{ih} (width x height)")
    wrong = labels[(labels > num_classes) & (labels != IGNORE)]
    if wrong.size:
        raise DataError(f"{path}: label {int(wrong[0])} in the mask, expected 0 to {num_classes} or {IGNORE}")
    return labels.astype(np.uint8)


def write_mask(path: str | os.PathLike[str], labels: np.ndarray, made_by: str = "") -> None:
    """Write labels, integers 0..255 [H, W], as a PNG with the VOC palette; a reader never sees half a file.

    `made_by` is kept in the file, for `mask_made_by`.

    A file that cannot be written (a full disk) is a DataError; what was there before stays.
    """
    labels = np.asarray(labels)
    if (
        labels.ndim != 2
        or labels.dtype.kind not in "iu"
        or (labels.size and not 0 <= labels.min() <= labels.max() <= 255)
    ):
        raise ValueError(f"labels must be [H, W] integers in 0..255, got {labels.dtype} {list(labels.shape)}")
    picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    picture.putpalette(VOC_PALETTE.tobytes())
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    notes = PngInfo()
    if made_by:
        notes.add_text("made_by", made_by)
    try:
        picture.save(partial, format="PNG", pnginfo=notes)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def mask_made_by(path: str | os.PathLike[str]) -> str:
    """What `write_mask` was told the mask is made from; "" if there is no such file, or it does not say."""
    try:
        with Image.open(path) as file:
            file.load()
            return str(file.info.get("made_by", ""))
    except _BROKEN:
        return ""


def _labels_of_colours(colours: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    code = colours.astype(np.int64) @ (1 << 16, 1 << 8, 1)  # [H, W]
    palette = VOC_PALETTE.astype(np.int64) @ (1 << 16, 1 << 8, 1)  # [256], all different
    order = np.argsort(palette)
    labels = order[np.searchsorted(palette, code, sorter=order).clip(max=255)]  # [H, W]
    unknown = palette[labels] != code
    if unknown.any():
        raise DataError(f"{path}: colour {tuple(colours[unknown][0].tolist())} is not of the VOC palette")
    return labels


def _unreadable(path: str | os.PathLike[str], kind: str, error: BaseException) -> DataError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: not a readable {kind} ({reason})")
