"""Masks on disk: palette PNG, one an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data import Split, write_mask
from ..errors import DataError
from .cam_files import read_cam
from .thresholds import label_map


def write_masks(
    cam_dir: Path,
    split: Split,
    out_dir: Path,
    thresholds: float | Sequence[float],
    *,
    skip_bad: bool = False,
) -> int:
    """Palette PNG `out_dir/<name>.png` for each image of a split, from its CAMs; returns how many.

    Args:
        thresholds: see `thresholds.label_map`.
        skip_bad: leave out images whose CAMs are missing or broken.
    """
    written = 0
    for record in split:
        try:
            keys, cam = read_cam(Path(cam_dir) / f"{record.name}.npz", len(split.classes))
        except DataError:
            if not skip_bad:
                raise
            continue
        save_mask(Path(out_dir) / f"{record.name}.png", label_map(cam, keys, thresholds))
        written += 1
    return written


def save_mask(path: Path, labels: np.ndarray, made_by: str = "") -> None:
    """`data.write_mask`, with the folders on the way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made: {error.strerror}") from None
    write_mask(path, labels, made_by)
