"""Twin of ops/label_closing.py: binary closing of each class with a square element, new pixels on background alone."""

import torch
from torch import Tensor


def label_closing(labels: Tensor, kernel_size: int, background: int, ignore: int) -> Tensor:  # [B, H, W] -> [B, H, W]
    out = labels.clone(memory_format=torch.contiguous_format)
    free = labels.long() == background  # a narrow map would be compared with a background cut to its type
    for label in labels.unique().tolist():  # ascending: a pixel claimed twice goes to the smallest label
        if label in (background, ignore):
            continue
        closed = -_dilate(-_dilate((labels == label).float(), kernel_size), kernel_size) > 0
        out[free & closed] = label
        free &= ~closed
    return out


def _dilate(x: Tensor, size: int) -> Tensor:
    """Maximum over the size x size window clipped at the border (max_pool2d pads with -inf); [B, H, W]."""
    x = torch.nn.functional.max_pool2d(x, (1, size), 1, (0, size // 2))
    return torch.nn.functional.max_pool2d(x, (size, 1), 1, (size // 2, 0))
