"""Small separable filters, border replicated, as sums of shifted slices: a constant stays one exactly, in any dtype,
and no run, autocast or device setting changes the order of the sums."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian(x: Tensor, size: int, sigma: float) -> Tensor:  # [..., h, w] -> [..., h, w]
    """Gaussian blur, `size` x `size` taps (odd) that sum to 1; what cv2.GaussianBlur does with BORDER_REPLICATE."""
    taps = [math.exp(-(((i - size // 2) / sigma) ** 2) / 2) for i in range(size)]
    taps = [t / sum(taps) for t in taps]
    return _correlate(_correlate(x, taps, -1), taps, -2)


def scharr_norm(x: Tensor) -> Tensor:  # [..., h, w] -> [..., h, w]
    """Length of the gradient by [[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]] and its transpose. Differentiable at 0: 0."""
    gx = _correlate(_correlate(x, (-1.0, 0.0, 1.0), -1), (3.0, 10.0, 3.0), -2)
    gy = _correlate(_correlate(x, (3.0, 10.0, 3.0), -1), (-1.0, 0.0, 1.0), -2)
    square = gx * gx + gy * gy
    zero = square == 0  # sqrt has no gradient there; a NaN is not zero and goes through
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def _correlate(x: Tensor, taps: Sequence[float], dim: int) -> Tensor:
    radius, size = len(taps) // 2, x.shape[dim]
    # cat, not F.pad: the backward of its replicate mode adds with float atomics on CUDA
    x = torch.cat([x.narrow(dim, 0, 1)] * radius + [x] + [x.narrow(dim, size - 1, 1)] * radius, dim)
    terms = [t * x.narrow(dim, i, size) for i, t in enumerate(taps) if t]
    return sum(terms[1:], start=terms[0])
