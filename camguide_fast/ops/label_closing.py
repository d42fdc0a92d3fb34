"""Morphological closing of label maps."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define


def _fake(labels, kernel_size, background, ignore):
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


define(
    "label_closing(Tensor labels, int kernel_size, int background, int ignore) -> Tensor",
    reference=reference.label_closing,
    fake=_fake,
    kernel=("label_closing", "cuda"),
)


def label_closing(labels: Tensor, kernel_size: int = 15, background: int = 0, ignore: int = 255) -> Tensor:
    """Closes gaps and holes of each class: dilation, then erosion, with a square of `kernel_size` pixels.

    Each class of the input map is closed on its own, as `cv2.morphologyEx(class, MORPH_CLOSE, ones(k, k))`: what lies
    outside the image counts in neither step. New pixels are written on background alone; where several classes claim
    one, the smallest label gets it. Pixels of `ignore` belong to no class and are never written.

    Args:
        labels: [B, H, W], uint8, int32 or int64.
        kernel_size: odd, >= 1 (1 changes nothing); may exceed the image.
        background: the label that is filled and not closed.
        ignore: the label left alone; differs from `background`.

    Returns:
        [B, H, W] like labels.

    Gradient: none (integers).

    Raises:
        ValueError, TypeError: wrong shape or dtype, an even kernel_size, ignore equal to background.
    """
    check.tensor("labels", labels, 3, (torch.uint8, torch.int32, torch.int64))
    check.integer("kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    for name, value in (("background", background), ("ignore", ignore)):
        check.integer(name, value, torch.iinfo(labels.dtype).min)
    if background == ignore:
        raise ValueError(f"background and ignore must differ, got {background} for both")
    return torch.ops.camguide_fast.label_closing(labels, kernel_size, background, ignore)
