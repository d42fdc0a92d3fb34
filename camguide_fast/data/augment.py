"""The random view of an image that a training step sees."""

from __future__ import annotations

import cv2
import numpy as np


def resize_long_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Rescale uint8 [H, W, 3] to a longer side of `long_side`, keeping the aspect (one pixel at least)."""
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Bicubic, as in Puzzle-CAM, reads 4x4 source pixels whatever the scale and so aliases when shrinking;
    # area averaging does not, and is cheaper.
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def train_view(
    image: np.ndarray, rng: np.random.Generator, crop: int, long_side: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Random scale, flip and crop.

    Args:
        image: uint8 [H, W, 3].
        rng: source of the draws; the number of draws does not depend on the image.
        crop: side S of the result.
        long_side: the longer side is rescaled to an integer drawn uniformly from [low, high], both included.

    Returns:
        (view uint8 [S, S, 3], valid bool [S, S]). Where the rescaled image is smaller than the crop it lies
        at a random offset and its border is repeated outwards; `valid` is False there.
    """
    low, high = long_side
    side = int(rng.integers(low, high, endpoint=True))
    flip = rng.random() < 0.5
    position = rng.random(2)  # y, x

    image = resize_long_side(image, side)
    if flip:
        image = image[:, ::-1]
    size = np.array(image.shape[:2])
    # Per axis either the crop moves over the image or the image over the crop: |difference| + 1 places.
    offset = (position * (np.abs(size - crop) + 1)).astype(int)
    y, x = np.where(size > crop, offset, 0)
    top, left = np.where(size > crop, 0, offset)
    image = image[y : y + crop, x : x + crop]
    height, width = image.shape[:2]
    valid = np.zeros((crop, crop), bool)
    valid[top : top + height, left : left + width] = True
    bottom, right = crop - height - top, crop - width - left
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge"), valid
