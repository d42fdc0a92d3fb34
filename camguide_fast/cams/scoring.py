"""mIoU of the CAMs of a split: thresholds swept, fitted, and scored. The rows are described in `results`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .. import ops
from ..data import Record, Split, read_mask
from ..errors import DataError
from .cam_files import read_cam
from .making import Labels
from .results import NOWHERE, Row
from .thresholds import (
    THRESHOLDS,
    fit_classwise,
    fit_global,
    iou,
    label_map,
    mean_iou,
    sweep_confusion,
    sweep_histogram,
)

Thresholds = float | tuple[float, ...]


def sweep(
    cam_dir: Path, split: Split, thresholds: Sequence[float] = THRESHOLDS, *, skip_bad: bool = False
) -> np.ndarray:
    """Confusion matrices int64 [T, C, C] of a split, one for each global threshold; rows are the truth.

    Args:
        cam_dir: of `write_cams`.
        thresholds: T numbers, increasing.
        skip_bad: leave out images whose CAM or mask is missing or broken.

    Raises:
        DataError: a split without masks; a CAM or mask that is missing, broken, or of another size.
    """
    total = np.zeros((len(split.classes) + 1, len(split.classes), len(thresholds) + 1), np.int64)
    for _, keys, cam, mask in _images(cam_dir, split, skip_bad):
        total += sweep_histogram(cam, keys, mask, len(split.classes), thresholds)
    return sweep_confusion(total)


def score(
    cam_dir: Path,
    split: Split,
    settings: Sequence[Thresholds],
    *,
    refine: Callable[[Record, np.ndarray], np.ndarray] | None = None,
    skip_bad: bool = False,
) -> tuple[list[np.ndarray], int]:
    """Confusion matrix int64 [C, C] for each of several thresholds (see `label_map`), and the number of images.

    The thresholds may come from anywhere. `refine(record, labels)` has the last word on an image's labels. Raises as
    `sweep`.
    """
    size = len(split.classes) + 1
    totals, images = [torch.zeros(size, size, dtype=torch.int64) for _ in settings], 0
    for record, keys, cam, mask in _images(cam_dir, split, skip_bad):
        truth = torch.from_numpy(mask)
        for total, thresholds in zip(totals, settings, strict=True):
            labels = label_map(cam, keys, thresholds)
            labels = labels if refine is None else refine(record, labels)
            total += ops.confusion_matrix(torch.from_numpy(labels), truth, size)
        images += 1
    return [total.numpy() for total in totals], images


def evaluate_cams(
    cam_dir: Path,
    split: Split,
    stage: str,
    labels: Labels,
    fit: tuple[Path, Split] | None = None,
    *,
    default: float | None = None,
    skip_bad: bool = False,
) -> list[Row]:
    """Rows of one stage on one split: global and class-wise, thresholds fitted on the split itself.

    With `fit`, CAMs and split to fit on, two more rows: thresholds fitted there and transferred. With `default` one
    more: that threshold, which was fitted nowhere. Masks are taken as they are; `data.compare_with_tags` tells whether
    they contradict the tags. Raises as `sweep`.
    """
    sources = [(split, _fitted(cam_dir, split, skip_bad))]
    if fit is not None and fit[1].name != split.name:
        sources.append((fit[1], _fitted(*fit, skip_bad)))
    fits = [(mode, t, source.name) for source, modes in sources for mode, t in modes.items()]
    if default is not None:
        fits.append(("global", default, NOWHERE))
    confusions, images = score(cam_dir, split, [t for _, t, _ in fits], skip_bad=skip_bad)
    return [
        make_row(stage, split, labels, mode, thresholds, fitted_on, confusion, images)
        for (mode, thresholds, fitted_on), confusion in zip(fits, confusions, strict=True)
    ]


def make_row(
    stage: str,
    split: Split,
    labels: Labels,
    mode: str,
    thresholds: Thresholds,
    fitted_on: str,
    confusion: np.ndarray,
    images: int,
) -> Row:
    """A row as `results` describes it."""
    by_class = zip(("background", *split.classes), iou(confusion), strict=True)
    mean = float(mean_iou(confusion))
    named = dict(zip(split.classes, thresholds, strict=True)) if isinstance(thresholds, tuple) else thresholds
    return {
        "stage": stage,
        "split": split.name,
        "labels": labels,
        "threshold_mode": mode,
        "thresholds": named,
        "fitted_on": fitted_on,
        "images": images,
        "miou": None if np.isnan(mean) else round(100 * mean, 3),
        "iou": {name: None if np.isnan(v) else round(100 * float(v), 3) for name, v in by_class},
    }


def check_masks(split: Split) -> None:
    """A DataError if the split has no masks. Those of some images are enough: the others are not scored."""
    if not any(record.mask for record in split):
        raise DataError(f"{split.root}: split {split.name!r} has no masks to score against")


def _fitted(cam_dir: Path, split: Split, skip_bad: bool) -> dict[str, Thresholds]:
    confusions = sweep(cam_dir, split, skip_bad=skip_bad)
    return {"global": fit_global(confusions), "class-wise": fit_classwise(confusions)}


def _images(cam_dir: Path, split: Split, skip_bad: bool) -> Iterator[tuple[Record, np.ndarray, np.ndarray, np.ndarray]]:
    """Record, keys, cam and mask of each image."""
    check_masks(split)
    found = False
    for record in split:
        if record.mask is None:
            continue
        try:
            keys, cam = read_cam(Path(cam_dir) / f"{record.name}.npz", len(split.classes))
            mask = read_mask(record.mask, len(split.classes), cam.shape[1:])
        except DataError:
            if not skip_bad:
                raise
            continue
        found = True
        yield record, keys, cam, mask
    if not found:
        raise DataError(f"{cam_dir}: not one image of split {split.name!r} has both a CAM and a mask")
