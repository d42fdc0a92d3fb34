"""Morphology of label maps: closing, opening, erosion and dilation of each class."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define


def _fake(labels, kernel_size, background, ignore):
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


def _fake_morphology(labels, operation, kernel_size, background, ignore):
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


define(
    "label_closing(Tensor labels, int kernel_size, int background, int ignore) -> Tensor",
    reference=reference.label_closing,
    fake=_fake,
    kernel=("label_closing", "cuda"),
)
define(
    "label_morphology(Tensor labels, str operation, int kernel_size, int background, int ignore) -> Tensor",
    reference=reference.label_morphology,
    fake=_fake_morphology,
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
    settings = _check(labels, kernel_size, background, ignore)
    return torch.ops.camguide_fast.label_closing(labels, *settings)


def label_dilation(labels: Tensor, kernel_size: int = 3, background: int = 0, ignore: int = 255) -> Tensor:
    """Grows each class by `kernel_size // 2` pixels onto background, as `cv2.dilate(class, ones(k, k))`.

    As in `label_closing`, no class grows over another or over `ignore`, and where several claim a pixel the smallest
    label gets it, whichever is nearer.

    Args, Returns, Gradient, Raises: as `label_closing`.
    """
    settings = _check(labels, kernel_size, background, ignore)
    return torch.ops.camguide_fast.label_morphology(labels, "dilation", *settings)


def label_erosion(labels: Tensor, kernel_size: int = 3, background: int = 0, ignore: int = 255) -> Tensor:
    """Takes `kernel_size // 2` pixels off each class, as `cv2.erode(class, ones(k, k))`; they become background.

    A pixel keeps its label where the square around it shows nothing else: neither background, nor another class, nor
    `ignore`. What lies outside the image does not count, so a class keeps the pixels along the border of the image.
    Background and `ignore` stay as they are.

    Args, Returns, Gradient: as `label_closing`.

    Raises:
        ValueError, TypeError: as `label_closing`; a background that the dtype of labels cannot hold.
    """
    settings = _check(labels, kernel_size, background, ignore, writes_background=True)
    return torch.ops.camguide_fast.label_morphology(labels, "erosion", *settings)


def label_opening(labels: Tensor, kernel_size: int = 3, background: int = 0, ignore: int = 255) -> Tensor:
    """Removes specks and thin parts of each class: erosion, then dilation, as `cv2.morphologyEx(class, MORPH_OPEN,
    ones(k, k))`.

    Pixels of a class that no square inside it covers become background; squares may stick out of the image.
    Background and `ignore` stay as they are.

    Args, Returns, Gradient: as `label_closing`.

    Raises: as `label_erosion`.
    """
    settings = _check(labels, kernel_size, background, ignore, writes_background=True)
    return torch.ops.camguide_fast.label_morphology(labels, "opening", *settings)


def _check(
    labels: Tensor, kernel_size: int, background: int, ignore: int, *, writes_background: bool = False
) -> tuple[int, int, int]:
    """Also returns the settings as the op takes them."""
    check.tensor("labels", labels, 3, (torch.uint8, torch.int32, torch.int64))
    kernel_size = check.integer("kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    limits = torch.iinfo(labels.dtype)
    background, ignore = (
        check.integer(name, value, limits.min, bits=64)
        for name, value in (("background", background), ("ignore", ignore))
    )
    if background == ignore:
        raise ValueError(f"background and ignore must differ, got {background} for both")
    if writes_background and background > limits.max:
        raise ValueError(f"background must be at most {limits.max} to be written to labels, got {background}")
    return kernel_size, background, ignore
