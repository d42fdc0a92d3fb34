"""Twin of ops/local_consistency.py: Eq. 35-39."""

import torch
from torch import Tensor

from ._common import widen, window_mean


def local_consistency_loss(features: Tensor, window: int, eps: float, valid: Tensor | None) -> Tensor:
    f = widen(features).relu()  # [B, K, h, w]
    if valid is not None:
        f = torch.where(valid, f, 0)
    k = f / (f.sum(1, keepdim=True) + eps)  # Eq. 35
    mean = window_mean(k, window // 2)  # Eq. 37
    if valid is not None:  # the mean over the valid pixels alone
        inside = window_mean(valid.to(k.dtype), window // 2)
        mean = mean / torch.where(inside > 0, inside, 1)
    agreement = (k * mean).sum(1)  # Eq. 38, [B, h, w]
    loss = (1 - agreement) * k.max(1).values  # Eq. 39; max(dim): of equal classes the first gets the gradient
    return loss.sum() / local_consistency_count(features, window, eps, valid)


def local_consistency_count(features: Tensor, window: int, eps: float, valid: Tensor | None) -> Tensor:
    """Pixels of the outer mean, at least 1."""
    b, _, h, w = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    if valid is None:
        return torch.full((), b * h * w, dtype=dtype, device=features.device)
    return valid.sum().clamp(min=1).to(dtype)
