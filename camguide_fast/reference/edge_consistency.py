"""Twin of ops/edge_consistency.py: Eq. 30-34."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import widen
from ._filters import gaussian, scharr_norm

REACH = 3  # pixels that blur (2) and Scharr (1) look around


def edge_consistency_loss(
    cam: Tensor,
    support: Tensor,
    label: Tensor,
    tau: float,
    delta: float,
    gamma: float,
    tau_hard: float,
    lambda_hard: float,
    valid: Tensor | None,
) -> Tensor:
    x, s = widen(cam), support.to(widen(cam).dtype)
    active = label > 0  # [B, K]
    planes = active.nonzero()[:, 0]  # the image of each active plane; the one place where the twin waits for a GPU
    x, s = x[active], s[planes, 0]  # [P, h, w]: inactive planes are not even read
    weak = s < tau
    if valid is None:
        m = scharr_norm(gaussian(x, 5, 1.5))
        largest = m.amax((1, 2), keepdim=True)
    else:
        x = torch.where(valid[planes, 0], x, 0)
        inside = _inside(valid)[planes, 0]
        m = torch.where(inside, scharr_norm(gaussian(x, 5, 1.5)), 0)
        largest = m.amax((1, 2), keepdim=True)
        weak = weak & inside
    e = m / largest.detach().clamp(min=1e-12)
    u = torch.where(weak, (e - (s + delta)).relu(), 0)  # Eq. 30
    n = edge_consistency_count(cam, support, label, tau, delta, gamma, tau_hard, lambda_hard, valid)
    focal = u.pow(gamma).sum() / n  # Eq. 32
    hard = torch.where(e > tau_hard, u, 0).sum() / n  # Eq. 33
    return focal + lambda_hard * hard  # Eq. 34


def edge_consistency_count(
    cam: Tensor,
    support: Tensor,
    label: Tensor,
    tau: float,
    delta: float,
    gamma: float,
    tau_hard: float,
    lambda_hard: float,
    valid: Tensor | None,
) -> Tensor:
    """N of Eq. 31, at least 1."""
    dtype = torch.promote_types(cam.dtype, torch.float32)
    weak = support.to(dtype) < tau
    if valid is not None:
        weak = weak & _inside(valid)
    return ((label > 0).sum(1) * weak.sum((1, 2, 3))).sum().clamp(min=1).to(dtype)


def _inside(valid: Tensor) -> Tensor:
    """Pixels of [B, 1, h, w] whose edge is computed from valid pixels alone."""
    return F.max_pool2d((~valid).float(), 2 * REACH + 1, 1, REACH) == 0
