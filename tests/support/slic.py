"""Photographs for the tests of slic, and its labels before small components are merged."""

import numpy as np
import skimage.data
import torch

from camguide_fast import ops

PICTURES = ["astronaut", "chelsea", "coffee", "rocket"]


def tensor(picture: np.ndarray) -> torch.Tensor:  # [H, W, 3] -> [1, 3, H, W]
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]


def crop(name: str, height: int = 256, width: int = 256) -> np.ndarray:
    picture = getattr(skimage.data, name)()
    return picture[20 : 20 + height, 120 : 120 + width]


def raw(image: torch.Tensor, n_segments: int, **settings) -> np.ndarray:
    return ops.slic(image, n_segments, min_size_factor=0, **settings)[0].numpy()
