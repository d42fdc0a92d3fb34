"""Twin of ops/target_nll.py: Eq. 27."""

import torch
from torch import Tensor

from ._common import widen


def target_nll(cam: Tensor, target: Tensor, label: Tensor, ignore: int, smooth: float, balance: bool) -> Tensor:
    present = (label > 0)[:, :, None, None]  # [B, K, 1, 1]
    t, groups = _groups(target, label, ignore, balance)  # [B, h, w], [G, B, h, w]
    counts = groups.any(0)
    x = torch.where(present & counts[:, None], widen(cam), 0).clamp(0, 1)  # [B, K, h, w]
    largest = torch.where(present, x, -1).max(1).values  # max(dim): of equal classes the first gets the gradient
    background = 1 - largest
    v = torch.where(t == 0, background, x.gather(1, (t - 1).clamp(min=0)[:, None])[:, 0])
    p = v / (background + x.sum(1))  # of [1 - max, the present classes]; the sum is >= 1
    classes = 1 + present.sum(1).to(x.dtype)  # [B, 1, 1]
    nll = -((p + smooth) / (1 + smooth * classes)).log()
    n = groups.sum((1, 2, 3))  # [G]
    means = torch.where(groups, nll, 0).sum((1, 2, 3)) / n.clamp(min=1)
    return means.sum() / (n > 0).sum().clamp(min=1)


def target_nll_count(cam: Tensor, target: Tensor, label: Tensor, ignore: int, smooth: float, balance: bool) -> Tensor:
    """What the gradient is stored without: the pixels' number, and slopes (1 / smooth) beyond 100, for fp16's sake."""
    n = _groups(target, label, ignore, balance)[1].sum((1, 2, 3))
    present = n > 0
    least = torch.where(present, n, n.sum()).min() * present.sum()  # one group: n. Two: the smaller sets the scale
    return least.clamp(min=1).to(torch.promote_types(cam.dtype, torch.float32)) * min(1.0, smooth / 0.01)


def _groups(target: Tensor, label: Tensor, ignore: int, balance: bool) -> tuple[Tensor, Tensor]:
    """Targets as 0..K [B, h, w]; pixels averaged together [G, B, h, w]: all that count, or back- and foreground."""
    present = label > 0
    table = torch.cat([present.any(1, keepdim=True), present], 1)  # [B, 1 + K]: a target that counts in this image
    known = (target != ignore) & (target >= 0) & (target <= label.shape[1])
    t = torch.where(known, target, 0).long()
    counts = known & table.gather(1, t.flatten(1)).view_as(t)
    return t, torch.stack([counts & (t == 0), counts & (t > 0)] if balance else [counts])
