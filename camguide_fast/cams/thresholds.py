"""From class activation maps to labels, and from labels to IoU: pure numerics on NumPy arrays, no files.

K classes, C = K + 1 labels (0 is the background, class k has label k + 1), P classes present in one image.
Values are compared in fp32 throughout, so that a threshold means the same in the sweep and in `label_map`.
"""

from collections.abc import Sequence

import numpy as np

IGNORE = 255
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 17))  # .05 .. .80
DEFAULT_THRESHOLD = 0.15  # IRN's, and the best of plain classification in the measurements here


def label_map(cam: np.ndarray, keys: np.ndarray, thresholds: float | Sequence[float]) -> np.ndarray:
    """Labels of one image.

    Args:
        cam: [P, H, W] any float dtype, in [0, 1]. P may be 0: all background.
        keys: [P] class indices 0..K-1 of the maps.
        thresholds: one number t: the class of the best CAM where that is > t (a constant background channel,
            which wins ties). K numbers t_k: the best among the classes with CAM_k >= t_k. None: background.

    Returns:
        uint8 [H, W], 0 background, k + 1 for class k; equal CAMs: the first of `keys`.

    Raises:
        ValueError: shapes that do not fit, a threshold outside [0, 1], fewer thresholds than classes.
    """
    keys = np.asarray(keys)
    if cam.ndim != 3 or keys.shape != cam.shape[:1]:
        raise ValueError(f"cam must be [P, H, W] with P keys, got {list(cam.shape)} and {list(keys.shape)}")
    limits = np.asarray(thresholds, np.float32)  # [] or [K]
    if limits.ndim > 1 or not ((limits >= 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds must be one number or one per class, each in [0, 1], got {thresholds}")
    if len(keys) == 0:
        return np.zeros(cam.shape[1:], np.uint8)
    cam = cam.astype(np.float32)
    if limits.ndim == 0:
        passes = cam > limits
    elif keys.max() < len(limits):
        passes = cam >= limits[keys][:, None, None]
    else:
        raise ValueError(f"thresholds: {len(limits)} numbers for class index {keys.max()}, expected one per class")
    best = np.where(passes, cam, -1).argmax(0)  # [H, W]
    return np.where(passes.any(0), keys[best] + 1, 0).astype(np.uint8)


def sweep_histogram(
    cam: np.ndarray,
    keys: np.ndarray,
    mask: np.ndarray,
    num_classes: int,
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """All an image says about every global threshold at once; sum it over images.

    Args:
        cam, keys: as in `label_map`.
        mask: uint8 [H, W], 0..K; 255 is left out.
        num_classes: K.
        thresholds: T numbers, increasing.

    Returns:
        int64 [C, K, T + 1]: pixels by true label, class of the best CAM, how many thresholds that exceeds.
    """
    if mask.shape != cam.shape[1:]:
        raise ValueError(f"mask is {list(mask.shape)}, cam {list(cam.shape)}")
    counted = mask != IGNORE
    truth = mask[counted].astype(np.int64)  # [n]
    top, level = np.zeros_like(truth), np.zeros_like(truth)
    if len(keys):
        values = cam[:, counted].astype(np.float32)  # [P, n]
        best = values.argmax(0)
        top = np.asarray(keys, np.int64)[best]
        level = np.searchsorted(np.asarray(thresholds, np.float32), np.take_along_axis(values, best[None], 0)[0])
    shape = (num_classes + 1, num_classes, len(thresholds) + 1)
    return np.bincount(np.ravel_multi_index((truth, top, level), shape), minlength=np.prod(shape)).reshape(shape)


def sweep_confusion(histogram: np.ndarray) -> np.ndarray:
    """Confusion matrices [T, C, C], rows are the truth, one for each global threshold, from [C, K, T + 1]."""
    above = histogram[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]  # [C, K, T] pixels whose best CAM exceeds threshold t
    background = histogram.sum((1, 2))[:, None] - above.sum(1)  # [C, T]
    return np.concatenate([background[:, None], above], 1).transpose(2, 0, 1)


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU = TP / (TP + FP + FN) by class, fp64 [..., C] of int [..., C, C]; NaN: neither true nor found."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    return np.divide(hit, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU [...] of [..., C, C] over background and classes; those with NaN are left out. NaN: not one pixel."""
    values = iou(confusion)
    defined = ~np.isnan(values)
    count = defined.sum(-1)
    return np.divide(np.where(defined, values, 0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def fit_global(confusions: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """The threshold of the best mIoU in a sweep [T, C, C]; of equals the lowest. Without one pixel: the default."""
    if not confusions.any():
        return DEFAULT_THRESHOLD
    return float(thresholds[int(mean_iou(confusions).argmax())])


def fit_classwise(confusions: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> tuple[float, ...]:
    """For each class the threshold of its own best IoU in a sweep [T, C, C]; of equals the lowest.

    A class without a single hit says nothing about its threshold and gets the global one.
    """
    by_class = np.nan_to_num(iou(confusions)[:, 1:])  # [T, K]
    fallback = fit_global(confusions, thresholds)
    best = by_class.argmax(0)
    return tuple(float(thresholds[t]) if by_class[t, k] > 0 else fallback for k, t in enumerate(best))
