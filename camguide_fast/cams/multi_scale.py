"""Class activation maps of one image over scales and mirror images, merged as in Puzzle-CAM and IRN."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import STRIDE, CamGuideNet, CamNet, logits

SCALES = (0.5, 1.0, 1.5, 2.0)
MAX_SIDE = 640
"""Larger images are shrunk to this long side before the scales apply: the largest that training shows."""


def class_maps(model: CamNet, image: Tensor) -> Tensor:
    """Raw class maps of images, at the network's own resolution.

    Args:
        model: a `CamNet` or `CamGuideNet`.
        image: RGB [B, 3, H, W], uint8 0-255 or float in [0, 1]; H and W at least 16.

    Returns:
        [B, K, ceil(H/16), ceil(W/16)], of a `CamGuideNet` [B, K, ceil(H/4), ceil(W/4)]; signed.
    """
    image01 = image if image.is_floating_point() else image.float() / 255
    x = model.backbone.input(image01 * 255)
    return model(x, image01) if isinstance(model, CamGuideNet) else model(x)


@torch.no_grad()
def scale_maps(
    model: CamNet,
    image: Tensor,
    scale: float,
    *,
    flip: bool = True,
    amp: bool = False,
    max_side: int = MAX_SIDE,
) -> Tensor:
    """Raw class maps of one image at one scale, and of its mirror image, mirrored back.

    Sides are scaled as they are, at least one stride. Rounding them to the stride, so that cells never hang over the
    border, costs .7 points of mIoU (100 photographs, one ResNet-18), and placing cells at their true centres 1.8.

    Args:
        model: in eval mode, on the image's device.
        image: uint8 RGB [3, H, W], any size from 1x1.
        scale: of the image, which is first shrunk to a long side of `max_side` if it is larger.
        amp: autocast, fp16 on CUDA and bf16 on CPU.

    Returns:
        fp32 [n, K, h, w], n = 2 with `flip`, else 1.
    """
    height, width = image.shape[1:]
    scale *= min(1.0, max_side / max(height, width))
    size = [max(STRIDE, round(side * scale)) for side in (height, width)]
    shrinks = size[0] < height or size[1] < width
    view = F.interpolate(image[None].float() / 255, size, mode="bicubic", antialias=shrinks).clamp(0, 1)
    batch = torch.cat([view, view.flip(3)]) if flip else view
    with torch.autocast(image.device.type, enabled=amp):
        maps = class_maps(model, batch).float()
    return torch.cat([maps[:1], maps[1:].flip(3)])


@torch.no_grad()
def merge_maps(maps: Sequence[Tensor], present: Sequence[int], size: Sequence[int]) -> Tensor:
    """CAMs of the present classes: ReLU, sum over mirror images and scales, each over its own maximum + 1e-5.

    Args:
        maps: one [n, K, h, w] for each scale, from `scale_maps`.
        present: P class indices.
        size: (H, W) of the image.

    Returns:
        fp32 [P, H, W] in [0, 1); P may be 0.
    """
    total = torch.zeros(len(present), *size, device=maps[0].device)
    if len(present) == 0:
        return total
    for scale in maps:
        summed = scale[:, list(present)].relu().sum(0, keepdim=True)  # [1, P, h, w]
        total += F.interpolate(summed, size, mode="bilinear", align_corners=False)[0]
    return total / (total.amax((1, 2), keepdim=True) + 1e-5)


def multi_scale_cam(
    model: CamNet,
    image: Tensor,
    present: Sequence[int],
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    max_side: int = MAX_SIDE,
) -> Tensor:
    """Class activation maps of one image at its own size, over several scales and the mirror image.

    Args:
        model: in eval mode.
        image: uint8 RGB [3, H, W], any size from 1x1.
        present: indices of the P classes wanted; their order is that of the result.
        scales, flip, amp, max_side: see `scale_maps`.
        device: where the model is; default: where its parameters are.

    Returns:
        fp32 [P, H, W] in [0, 1), on `device`. A class that is nowhere positive gives zeros.
    """
    image = image.to(device or next(model.parameters()).device)
    maps = [scale_maps(model, image, s, flip=flip, amp=amp, max_side=max_side) for s in scales]
    return merge_maps(maps, present, tuple(image.shape[1:]))


def mean_logits(maps: Tensor) -> Tensor:
    """Class logits [K] of one image, from its `scale_maps` at scale 1: what tags are predicted by."""
    return logits(maps).mean(0)
