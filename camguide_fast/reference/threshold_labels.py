"""Twin of ops/threshold_labels.py: Eq. 6-7, as labels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ._common import widen


def threshold_labels(cam: Tensor, label: Tensor, tau: Tensor, size: list[int], valid: Tensor | None) -> Tensor:
    present = (label > 0)[:, :, None, None]  # [B, K, 1, 1]
    maps = torch.where(present, F.interpolate(widen(cam), size, mode="bilinear"), 0)  # [B, K, H, W]
    top, which = maps.max(1)  # of equal classes the first; NaN if there is one, which exceeds nothing
    labels = torch.where(top > tau.to(top.dtype)[:, None, None], which + 1, 0).to(torch.uint8)
    return labels if valid is None else labels.masked_fill(~valid[:, 0], 255)
