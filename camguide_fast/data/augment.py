"""The random view of an image that a training step sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


def resize_long_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Rescale uint8 [H, W, 3] to a longer side of `long_side`, keeping the aspect (one pixel at least)."""
    height, width = scaled_size(image.shape, long_side)
    # Pillow's filters widen when they shrink and so do not alias. Hamming's is the nearest to area averaging and takes
    # half as long as bicubic, which Puzzle-CAM has.
    grows = long_side > max(image.shape[:2])
    resample = Image.Resampling.BICUBIC if grows else Image.Resampling.HAMMING
    return np.array(Image.fromarray(image).resize((width, height), resample))


def scaled_size(shape: tuple[int, ...], long_side: int) -> tuple[int, int]:
    """(height, width) of an image [H, W, ...] rescaled to a longer side of `long_side`."""
    scale = long_side / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


@dataclass(frozen=True)
class View:
    """Where a random scale, flip and crop takes the pixels of an image [H, W]."""

    long_side: int
    flip: bool
    position: tuple[float, float]  # y, x
    crop: int

    @classmethod
    def draw(cls, rng: np.random.Generator, crop: int, long_side: tuple[int, int]) -> View:
        """The longer side is drawn uniformly from [low, high], both included. The number of draws is always the
        same."""
        low, high = long_side
        side = int(rng.integers(low, high, endpoint=True))
        return cls(side, bool(rng.random() < 0.5), tuple(rng.random(2)), crop)

    def image(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] -> (view [S, S, 3], valid bool [S, S]): see `train_view`."""
        view, (top, bottom, left, right) = self._cut(resize_long_side(image, self.long_side))
        valid = np.pad(np.ones(view.shape[:2], bool), ((top, bottom), (left, right)))
        return np.pad(view, ((top, bottom), (left, right), (0, 0)), mode="edge"), valid

    def mask(self, mask: np.ndarray, ignore: int = 255) -> np.ndarray:
        """Labels uint8 [H, W] of that image -> [S, S], `ignore` where it does not reach."""
        height, width = scaled_size(mask.shape, self.long_side)
        resized = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        view, (top, bottom, left, right) = self._cut(resized)
        return np.pad(view, ((top, bottom), (left, right)), constant_values=ignore)

    def _cut(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """The part that lies in the crop, and how much is missing on each side."""
        if self.flip:
            pixels = pixels[:, ::-1]
        size = np.array(pixels.shape[:2])
        # Per axis either the crop moves over the image or the image over the crop: |difference| + 1 places.
        offset = (np.array(self.position) * (np.abs(size - self.crop) + 1)).astype(int)
        y, x = np.where(size > self.crop, offset, 0)
        top, left = np.where(size > self.crop, 0, offset)
        pixels = pixels[y : y + self.crop, x : x + self.crop]
        height, width = pixels.shape[:2]
        return pixels, (top, self.crop - height - top, left, self.crop - width - left)


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
    return View.draw(rng, crop, long_side).image(image)
