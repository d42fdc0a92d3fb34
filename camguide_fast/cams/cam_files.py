"""CAMs on disk: one `.npz` an image, complete or not there."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data import FullImages, Split, Workers, full_images
from ..errors import DataError
from ..files import write_atomic

BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What np.load raises on a damaged file."""


@dataclass(frozen=True)
class ImageCams:
    """The CAMs of one image."""

    name: str
    image: Tensor  # uint8 [3, H, W]
    keys: np.ndarray  # int64 [P] class indices, ascending
    cam: np.ndarray  # float16 [P, H, W] in [0, 1]


def images_only(split: Split, workers: Workers = "auto", skip_bad: bool = False) -> FullImages:
    """`full_images` without masks: no business of inference, a broken one least of all."""
    return full_images(replace(split, records=tuple(replace(r, mask=None) for r in split)), workers, skip_bad)


def save_cam(path: Path, made: ImageCams, made_by: str) -> None:
    """A file as `write_cams` describes it, in one step."""
    buffer = io.BytesIO()
    np.savez(buffer, keys=made.keys, cam=made.cam, made_by=np.array(made_by))
    write_atomic(path, buffer.getbuffer())


def cam_made_by(path: Path) -> str:
    """What a CAM file says it was made from; of one that does not say, as those of other programs, size and time; ""
    if there is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "made_by" in file:
                return str(file["made_by"])
        state = path.stat()
        return f"{state.st_size} {state.st_mtime_ns}"
    except BROKEN:
        return ""


def read_cam(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`keys` [P], `cam` [P, H, W] of a file of `write_cams` or in IRN's layout (see `irn_files`); a DataError names one
    that is missing or does not fit, for instance an image of `size` = (H, W)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, cam = file["keys"], file["high_res" if "high_res" in file else "cam"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such CAM file") from None
    except BROKEN as error:
        raise DataError(f"{path}: not a readable CAM file ({error})") from None
    if keys.ndim != 1 or cam.ndim != 3 or len(keys) != len(cam) or not np.issubdtype(keys.dtype, np.integer):
        raise DataError(f"{path}: keys {list(keys.shape)} and cam {list(cam.shape)}, expected [P] and [P, H, W]")
    if len(keys) and not 0 <= keys.min() <= keys.max() < num_classes:
        raise DataError(f"{path}: class index {keys.max()}, expected 0 to {num_classes - 1}")
    if size is not None and cam.shape[1:] != size:
        raise DataError(f"{path}: CAMs of {list(cam.shape[1:])} pixels, the image has {list(size)}")
    return keys, cam


class SavedCams:
    """The images of a split with the CAMs that `cam_dir` holds for them, in order. After an iteration `skipped` lists
    the names that were left out.

    With `skip_bad` off an image or a file that is missing, broken or of another size is a DataError.
    """

    def __init__(self, split: Split, cam_dir: Path, workers: Workers = "auto", skip_bad: bool = False):
        self.images, self.cam_dir = images_only(split, workers, skip_bad), Path(cam_dir)
        self.skip_bad, self.classes = skip_bad, len(split.classes)
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[ImageCams]:
        missing = []
        for item in self.images:
            try:
                path = self.cam_dir / f"{item['name']}.npz"
                keys, cam = read_cam(path, self.classes, tuple(item["image"].shape[1:]))
                if cam.size and not (0 <= cam.min() and cam.max() <= 1):  # NaN is neither
                    raise DataError(f"{path}: CAMs from {cam.min():g} to {cam.max():g}, expected 0 to 1")
            except DataError:
                if not self.skip_bad:
                    raise
                missing.append(item["name"])
                continue
            yield ImageCams(item["name"], item["image"], keys, cam)
        self.skipped = self.images.skipped + missing
