"""Masks on disk: labels in a PNG, however it was encoded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import DataError
from .images import BROKEN, unreadable

IGNORE = 255


def _voc_palette() -> np.ndarray:
    colours = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):  # bits 0, 1, 2 of the label go to red, green, blue, most significant place first
            for channel in range(3):
                colours[label, channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


VOC_PALETTE = _voc_palette()  # uint8 [256, 3], RGB by label, as in the VOC development kit
VOC_PALETTE.setflags(write=False)


def read_mask(path: str | os.PathLike[str], num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask file as uint8 [H, W]: 0 background, 1..num_classes, 255 ignored; see `read_labels`.

    A DataError names the file if it does not decode, if `size` = (H, W) is given and differs, or if a label
    is neither a class nor 255.
    """
    labels = read_labels(path, num_classes)
    if size is not None and labels.shape != tuple(size):
        raise DataError(f"{path}: {other_size(labels.shape, size)}")
    wrong = labels[(labels > num_classes) & (labels != IGNORE)]
    if wrong.size:
        raise DataError(f"{path}: {expected_labels(int(wrong[0]), num_classes)}")
    return labels.astype(np.uint8)


def read_labels(path: str | os.PathLike[str], num_classes: int) -> np.ndarray:
    """The labels in a mask file, unsigned [H, W], whatever their values.

    Palette and grey PNGs of 1, 8 or 16 bits hold the labels themselves; but where an encoder has reordered VOC's
    palette, and in RGB(A), the label is that of the colour in VOC's palette. A DataError names the file if it does not
    decode, or has another colour.
    """
    try:
        with Image.open(path) as file:
            file.load()
            if file.mode in ("RGB", "RGBA"):
                return _labels_of_colours(np.asarray(file.convert("RGB")), path)
            if file.mode == "P":
                return _labels_of_indices(np.array(file), file.getpalette() or [], num_classes)
            if file.mode == "1" or file.mode == "LA":
                return np.array(file.convert("L") if file.mode == "LA" else file).astype(np.uint8)
            if file.mode == "L" or file.mode.startswith("I"):
                return np.array(file)
            raise DataError(f"{path}: a mask must be a palette, grey or RGB image, found mode {file.mode}")
    except DataError:
        raise
    except BROKEN as error:
        raise unreadable(path, "mask", error) from None


def other_size(mask: tuple[int, ...], image: tuple[int, ...]) -> str:
    return f"the mask is {mask[1]}x{mask[0]}, its image is {image[1]}x{image[0]} (width x height)"


def expected_labels(label: int, num_classes: int) -> str:
    return f"label {label} in the mask, expected 0 to {num_classes} or {IGNORE}"


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
    except BROKEN:
        return ""


def palette_of(path: str | os.PathLike[str] | None) -> bytes:
    """The colours of a palette image, b"" for any other."""
    try:
        with Image.open(path or "") as file:
            return bytes(file.getpalette() or ()) if file.mode == "P" else b""
    except BROKEN:
        return b""


def _codes(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For colours uint8 [..., 3]: a number uint8 that differs between the colours of VOC's palette, and whether it is
    one of them. They have the upper three bits of red and green, and two of blue."""
    red, green, blue = np.moveaxis(colours, -1, 0)
    return (red & 0xE0) | (green >> 5 << 2) | (blue >> 6), ((red | green) & 0x1F) | (blue & 0x3F) == 0


_LABEL_OF_CODE = np.argsort(_codes(VOC_PALETTE)[0]).astype(np.uint8)  # [256]


def _labels_of_colours(colours: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    codes, known = _codes(colours)  # [H, W]
    if not known.all():
        colour = tuple(colours[~known][0].tolist())
        raise DataError(f"{path}: colour {colour} is not of the VOC palette; write the labels as a grey or palette PNG")
    return _LABEL_OF_CODE[codes]


def _labels_of_indices(indices: np.ndarray, palette: list[int], num_classes: int) -> np.ndarray:
    """Labels [H, W] of a palette image.

    An encoder that writes only the colours which occur, or sorts them, changes the indices and keeps the colours: all
    are VOC's, once each, at other places. Every other palette is decoration, as is one that would give no labels.
    """
    colours = np.array(palette, np.uint8).reshape(-1, 3)  # [n, 3]
    if np.array_equal(colours, VOC_PALETTE[: len(colours)]):
        return indices
    black = [not any(colour) for colour in colours.tolist()]
    end = len(black) - black[::-1].index(False) if False in black else 0
    colours = colours[: end if True in black[:end] else end + 1]  # behind the background black only fills up
    codes, known = _codes(colours)
    if not known.all() or len(set(codes.tolist())) < len(codes) or indices.max(initial=0) >= len(codes):
        return indices
    labels = _LABEL_OF_CODE[codes][indices]
    fits = (labels <= num_classes) | (labels == IGNORE)
    return labels if fits.all() else indices
