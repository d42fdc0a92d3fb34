"""Twin of ops/label_closing.py: binary morphology of each class with a square element."""

import torch
from torch import Tensor


def label_closing(labels: Tensor, kernel_size: int, background: int, ignore: int) -> Tensor:  # [B, H, W] -> [B, H, W]
    return _grow(labels, lambda x: _erode(_dilate(x, kernel_size), kernel_size), background, ignore)


def label_morphology(  # [B, H, W] -> [B, H, W]
    labels: Tensor, operation: str, kernel_size: int, background: int, ignore: int
) -> Tensor:
    if operation == "dilation":
        return _grow(labels, lambda x: _dilate(x, kernel_size), background, ignore)
    if operation == "erosion":
        return _shrink(labels, lambda x: _erode(x, kernel_size), background, ignore)
    if operation == "opening":
        return _shrink(labels, lambda x: _dilate(_erode(x, kernel_size), kernel_size), background, ignore)
    raise ValueError(f"operation must be opening, erosion or dilation, got {operation!r}")


def _grow(labels: Tensor, transform, background: int, ignore: int) -> Tensor:
    """New pixels on background alone."""
    out = labels.clone(memory_format=torch.contiguous_format)
    free = labels.long() == background  # a narrow map would be compared with a background cut to its type
    for label in _classes(labels, background, ignore):  # ascending: a pixel claimed twice goes to the smallest label
        grown = transform((labels == label).float()) > 0
        out[free & grown] = label
        free &= ~grown
    return out


def _shrink(labels: Tensor, transform, background: int, ignore: int) -> Tensor:
    """What a class loses becomes background."""
    out = labels.clone(memory_format=torch.contiguous_format)
    for label in _classes(labels, background, ignore):
        own = labels == label
        out[own & (transform(own.float()) == 0)] = background
    return out


def _classes(labels: Tensor, background: int, ignore: int) -> list[int]:
    return [label for label in labels.unique().tolist() if label not in (background, ignore)]


def _dilate(x: Tensor, size: int) -> Tensor:
    """Maximum over the size x size window clipped at the border (max_pool2d pads with -inf); [B, H, W]."""
    x = torch.nn.functional.max_pool2d(x, (1, size), 1, (0, size // 2))
    return torch.nn.functional.max_pool2d(x, (size, 1), 1, (size // 2, 0))


def _erode(x: Tensor, size: int) -> Tensor:
    return 1 - _dilate(1 - x, size)
