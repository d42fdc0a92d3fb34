"""sRGB -> CIE Lab (D65, 2 degrees), the constants of `skimage.color.rgb2lab`.

Built from additions, multiplications and conversions, each rounded once (IEEE), in the order written here and
without `pow`, `cbrt`, division or fused multiply-add. So every backend that keeps the order gets the same bits,
and SLIC the same labels.
"""

import torch
from torch import Tensor

_WHITE = (0.95047, 1.0, 1.08883)
_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)


def lab(rgb: Tensor) -> Tensor:  # [B, 3, H, W] fp32 or fp64 in [0, 1] -> L in [0, 100], a, b
    r, g, b = linear(rgb).unbind(1)
    f = []
    for row, white in zip(_XYZ_FROM_RGB, _WHITE, strict=True):
        t = r * (row[0] / white) + g * (row[1] / white) + b * (row[2] / white)
        f.append(torch.where(t > 0.008856, root(t, 3), t * 7.787 + 16 / 116))
    x, y, z = f
    return torch.stack([y * 116 - 16, (x - y) * 500, (y - z) * 200], 1)


def linear(srgb: Tensor) -> Tensor:
    """Undoes the sRGB gamma: ((v + .055) / 1.055)^2.4 as s times the fifth root of s, s the square."""
    v = (srgb + 0.055) * (1 / 1.055)
    square = v * v
    return torch.where(srgb > 0.04045, square * root(square, 5), srgb * (1 / 12.92))


def root(x: Tensor, n: int) -> Tensor:
    """n-th root of x > 0 (anything for x <= 0), n = 3 or 5.

    r, the root's inverse, from the bits of the fp32 value within 4 %; then series of (1 - e)^(-1/n) and, for the root
    t = x r^(n-1), of (1 - e)^(1/n - 1), where e = 1 - x r^n.
    """
    bits = x.to(torch.float32).clamp(min=1e-6).view(torch.int32).to(torch.float32)
    r = ({3: 0x54A1F671, 5: 0x4C2B4A23}[n] - (bits * (1 / n)).to(torch.int32)).view(torch.float32).to(x.dtype)
    for _ in range(2 if x.dtype == torch.float64 else 1):
        _, e = _root_and_error(x, r, n)
        r = r + r * (e * (e * ((n + 1) / (2 * n * n)) + 1 / n))
    t, e = _root_and_error(x, r, n)
    return t + t * (e * (e * ((n - 1) * (2 * n - 1) / (2 * n * n)) + (n - 1) / n))


def _root_and_error(x: Tensor, r: Tensor, n: int) -> tuple[Tensor, Tensor]:
    square = r * r
    t = x * (square if n == 3 else square * square)
    return t, 1 - t * r
