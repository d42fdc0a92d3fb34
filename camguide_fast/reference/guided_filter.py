"""Twin of ops/guided_filter.py: He, Sun & Tang (2013), Eq. 14-16, colour guide, windows clipped at the border."""

import torch
from torch import Tensor

from ._common import unit_image, widen, window_count, window_mean


def guided_filter(
    z: Tensor, guide: Tensor, radius: int, eps: float, adjoint: bool = False
) -> Tensor:  # [B, K, H, W], [B, 3, H, W] -> [B, K, H, W]
    """GF(z), or its adjoint N GF(z / N) with N the pixels of each window: GF = S / N with S symmetric."""
    p = widen(z)
    n = window_count(p, radius)  # [H, W]
    return (n * _filter(p / n, guide, radius, eps) if adjoint else _filter(p, guide, radius, eps)).to(z.dtype)


def _filter(p: Tensor, guide: Tensor, radius: int, eps: float) -> Tensor:
    image = unit_image(guide).to(p.dtype)
    image = image - image.mean(
        (2, 3), keepdim=True
    )  # the filter does not see a shift of the guide; fp32 cancels less around 0
    mean_i, mean_p = window_mean(image, radius), window_mean(p, radius)
    pairs = (image[:, :, None] * image[:, None]).flatten(1, 2)  # [B, 9, H, W]
    cov_ii = window_mean(pairs, radius).unflatten(1, (3, 3)) - mean_i[:, :, None] * mean_i[:, None]  # [B, 3, 3, H, W]
    products = (image[:, :, None] * p[:, None]).flatten(1, 2)  # [B, 3K, H, W]
    cov_ip = (
        window_mean(products, radius).unflatten(1, (3, -1)) - mean_i[:, :, None] * mean_p[:, None]
    )  # [B, 3, K, H, W]
    a = _solve(cov_ii + eps * torch.eye(3, dtype=p.dtype, device=p.device)[:, :, None, None], cov_ip)
    b = mean_p - (a * mean_i[:, :, None]).sum(1)
    mean_a = window_mean(a.flatten(1, 2), radius).unflatten(1, (3, -1))
    return (mean_a * image[:, :, None]).sum(1) + window_mean(b, radius)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix^-1 right for symmetric 3x3 matrices [B, 3, 3, H, W] and [B, 3, K, H, W]: rows of the inverse are cross
    products / det."""
    r0, r1, r2 = matrix.unbind(1)
    adjugate = torch.stack(
        [torch.linalg.cross(r1, r2, dim=1), torch.linalg.cross(r2, r0, dim=1), torch.linalg.cross(r0, r1, dim=1)], 1
    )
    det = (adjugate[:, 0] * r0).sum(1)
    return torch.einsum("bijhw,bjkhw->bikhw", adjugate, right) / det[:, None, None]
