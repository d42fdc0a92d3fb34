"""Window local consistency (Eq. 35-39)."""

import torch
from torch import Tensor

from ..reference.local_consistency import local_consistency_count
from ..reference.local_consistency import local_consistency_loss as reference_loss
from . import _checks as check
from ._register import define_loss, needs_grad

define_loss(
    "local_consistency_loss(Tensor features, int window, float eps, Tensor? valid, bool need_grad)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference_loss,
    count=local_consistency_count,
    kernel=("local_consistency", "triton"),
)


def local_consistency_loss(features: Tensor, window: int = 7, eps: float = 1e-5, valid: Tensor | None = None) -> Tensor:
    r"""Disagreement of each pixel with the mean class distribution around it, Eq. 35-39, averaged over the batch too.

    $K_k = f_k / (\sum_{k'} f_{k'} + \epsilon)$ with $f = \mathrm{relu}(features)$; $\bar K$ its mean over the window;
    $L = \frac{1}{N} \sum_{b,i,j} (1 - \sum_k K_k \bar K_k) \max_k K_k$.

    Args:
        features: class maps [B, K, h, w], fp32/fp16/bf16/fp64, meant to be >= 0. Negative values count as 0, with
            gradient 0. An all-zero pixel contributes 0, and counts as zeros in the means around it.
        window: odd side of the window, which is clipped at the border and divided by its own pixel count. May exceed
            the map.
        eps: > 0, of Eq. 35.
        valid: bool [B, 1, h, w]. Pixels outside it influence nothing: they leave the outer mean and the means of their
            neighbours' windows (values there may be anything, NaN too), and get gradient 0.

    Returns:
        fp32 scalar (fp64 for fp64) in [0, 1], 0 if no pixel is valid. N = B h w, or the number of valid pixels.

    Gradient: to features, once (a second one raises). Through the maximum it goes to the first of equal classes, as in
    `torch.max(dim)`.

    Raises:
        ValueError, TypeError: wrong shape, dtype or device; an even window; eps <= 0.
    """
    check.tensor("features", features, 4)
    b, _, h, w = features.shape
    window = check.integer("window", window, 1)
    if window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    eps = check.number("eps", eps, 0, strict=True)
    check.valid(valid, b, h, w)
    check.same_device(features=features, valid=valid)
    return torch.ops.camguide_fast.local_consistency_loss(features, window, float(eps), valid, needs_grad(features))[0]
