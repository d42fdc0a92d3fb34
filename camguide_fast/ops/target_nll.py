"""Cross-entropy of class maps against a target made by a heuristic (Eq. 27)."""

import torch
from torch import Tensor

from ..reference.target_nll import target_nll as reference_loss
from ..reference.target_nll import target_nll_count
from . import _checks as check
from ._register import define_loss, needs_grad
from ._value_range import value_range

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

define_loss(
    "target_nll(Tensor cam, Tensor target, Tensor label, int ignore, float smooth, bool balance, bool need_grad)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference_loss,
    count=target_nll_count,
    kernel=("target_nll", "triton"),
)


def target_nll(
    cam: Tensor,
    target: Tensor,
    label: Tensor,
    ignore: int = 255,
    smooth: float = 0.01,
    balance: bool = False,
) -> Tensor:
    r"""Negative log-likelihood of target labels under class maps that are no probabilities yet, Eq. 27.

    At each pixel $v_0 = 1 - \max_k c_k$, $v_k = c_k$ over the present classes, $p = v / \sum v$ and
    $L = -\log \frac{p_t + s}{1 + s (1 + \text{present classes})}$, averaged over the pixels that count.

    PAPER: Eq. 27 says cross-entropy of the CAM; `smooth=1e-5` is its literal reading. The default bounds loss and
    gradient at pixels where a target contradicts a CAM of 0.

    Args:
        cam: class maps [B, K, h, w] in [0, 1] (`cam_normalize`), fp32/fp16/bf16/fp64. Values outside are clamped, with
            gradient 0, so that the sum of v is >= 1. What maps of absent classes hold makes no difference.
        target: [B, h, w], an integer dtype: 0 background, k + 1 class k, `ignore` no target.
        label: [B, K], bool, int or float, > 0 means present. A target of an absent class counts as ignored, and an
            image without present classes as ignored altogether.
        ignore: the value of `target` that is left out.
        smooth: s > 0.
        balance: background and foreground pixels of the batch are averaged separately, and the loss is the mean of the
            two (or the one there is, if there are pixels of one alone).

    Returns:
        fp32 scalar (fp64 for fp64). 0, with zero gradient, if no pixel counts.

    Gradient: to cam, once (a second one raises), through the normalisation and the maximum; of equal classes the first
    present one gets the maximum's.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or smooth; on CPU a target that is neither in 0..K nor
            `ignore` (on CUDA it counts as ignored).
    """
    check.tensor("cam", cam, 4)
    b, k, h, w = cam.shape
    check.tensor("target", target, 3, INTEGERS)
    check.shape("target", target, (b, h, w), "cam [B, K, h, w]")
    check.label("label", label, b, k)
    check.same_device(cam=cam, target=target, label=label)
    smooth = check.number("smooth", smooth, 0, strict=True)
    if check.values(target):
        low, high = value_range(target, ignore)
        if low < 0 or high > k:
            got = low if low < 0 else high
            raise ValueError(f"target must hold 0..{k} (0 background) or ignore={ignore}, got {got}")
    return torch.ops.camguide_fast.target_nll(cam, target, label, ignore, float(smooth), balance, needs_grad(cam))[0]
