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
    mean, cov = _statistics(image.double(), radius)  # [B, 3, H, W], [B, 3, 3, H, W]
    factors = [x.to(p.dtype)[:, None] for x in _factors(cov, eps)]  # [B, 1, H, W] each
    mean_i, mean_p = mean.to(p.dtype), window_mean(p, radius)
    products = (image[:, :, None] * p[:, None]).flatten(1, 2)  # [B, 3K, H, W]
    cov_ip = (
        window_mean(products, radius).unflatten(1, (3, -1)) - mean_i[:, :, None] * mean_p[:, None]
    )  # [B, 3, K, H, W]
    a = _solve(factors, cov_ip)
    b = mean_p - (a * mean_i[:, :, None]).sum(1)
    mean_a = window_mean(a.flatten(1, 2), radius).unflatten(1, (3, -1))
    return (mean_a * image[:, :, None]).sum(1) + window_mean(b, radius)


def _statistics(image: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the guide in each window, in fp64: little is left of E[II] - E[I]E[I] where it is flat."""
    mean = window_mean(image, radius)
    pairs = (image[:, :, None] * image[:, None]).flatten(1, 2)  # [B, 9, H, W]
    return mean, window_mean(pairs, radius).unflatten(1, (3, 3)) - mean[:, :, None] * mean[:, None]


def _factors(cov: Tensor, eps: float) -> list[Tensor]:
    """S = cov + eps = L D L^T [B, 3, 3, H, W] -> L (10, 20, 21) and 1 / D (3), [B, H, W] each.

    Where the guide is grey, S is singular but for eps, and its determinant and the entries of its inverse would lose
    eps in fp32.
    """
    s = (cov[:, i, j] + (eps if i == j else 0) for i in range(3) for j in range(i, 3))
    s00, s01, s02, s11, s12, s22 = s
    i0 = 1 / s00.clamp(min=eps)  # rounding brings no pivot below eps
    l10, l20 = s01 * i0, s02 * i0
    d1 = (s11 - l10 * s01).clamp(min=eps)
    i1 = 1 / d1
    l21 = (s12 - l20 * s01) * i1
    i2 = 1 / (s22 - l20 * s02 - l21 * l21 * d1).clamp(min=eps)
    return [l10, l20, l21, i0, i1, i2]


def _solve(factors: list[Tensor], right: Tensor) -> Tensor:
    """S^-1 right [B, 3, K, H, W]."""
    l10, l20, l21, i0, i1, i2 = factors
    u0, u1, u2 = right.unbind(1)
    u1 = u1 - l10 * u0
    a2 = (u2 - l20 * u0 - l21 * u1) * i2
    a1 = u1 * i1 - l21 * a2
    return torch.stack([u0 * i0 - l10 * a1 - l20 * a2, a1, a2], 1)
