"""From features back to what they were made of: `utils.create_pairwise_gaussian` and `create_pairwise_bilateral`."""

import numpy as np
import torch

_EXPECTED = (
    "features must be those of create_pairwise_gaussian for two dimensions, or of create_pairwise_bilateral for an "
    "image with three channels"
)


def row_length(features: np.ndarray) -> int:
    """Pixels in a row of the image whose features [d, h * w] these are: as many as share the first one's position."""
    rows = features[0]
    return int((rows != rows[0]).argmax()) or len(rows)


def grid_sigmas(features: np.ndarray, h: int, w: int) -> tuple[float, float]:
    """The sigmas of rows and columns, which come first in `features` [d, h * w], d = 2 or 5."""
    if len(features) not in (2, 5):
        raise NotImplementedError(f"{_EXPECTED}; got {len(features)} features a pixel")
    if features.shape[1] != h * w:
        raise NotImplementedError(f"{_EXPECTED}; got other positions")
    rows, columns = features[:2].reshape(2, h, w)
    down, along = (
        float(1 / step) if step > 0 else 1.0 for step in (rows[-1, 0] / max(h - 1, 1), columns[0, -1] / max(w - 1, 1))
    )
    grid = np.meshgrid(np.arange(h) / down, np.arange(w) / along, indexing="ij")
    if not np.allclose([rows, columns], grid, rtol=1e-5, atol=1e-6):
        raise NotImplementedError(f"{_EXPECTED}; got other positions")
    return down, along


def split_colours(colours: np.ndarray) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """Colours / srgb [1, 3, h, w] as an image in [-1, 1] and the srgb that belongs to it."""
    largest = np.maximum(np.abs(colours).max((0, 2, 3), keepdims=True), 1e-6)
    red, green, blue = (255 / float(x) for x in largest.flat)
    return torch.from_numpy(colours / largest), (red, green, blue)
