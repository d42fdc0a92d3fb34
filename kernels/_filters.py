"""Blur and Scharr with replicated border at one pixel at a time, and their adjoints. The two differences are taken
before the sum over them, so that a constant has no edge at all, whatever the compiler fuses."""

import math

import triton
import triton.language as tl


def _gaussian(radius: int, sigma: float) -> tuple[float, ...]:
    taps = [math.exp(-((i / sigma) ** 2) / 2) for i in range(radius + 1)]
    return tuple(t / (2 * sum(taps) - taps[0]) for t in taps)


BLUR_5 = tl.constexpr(_gaussian(2, 1.5))  # centre, one off, two off


@triton.jit
def clamp(i, n):
    return tl.minimum(tl.maximum(i, 0), n - 1)


@triton.jit
def scharr(blurred_ptr, y, x, h, w):
    """Slopes (along x, along y) of a map [h, w] at pixels (y, x)."""
    above, row, below = clamp(y - 1, h) * w, y * w, clamp(y + 1, h) * w
    left, right = clamp(x - 1, w), clamp(x + 1, w)
    inside = (y < h) & (x < w)
    a = tl.load(blurred_ptr + above + left, mask=inside, other=0)
    b = tl.load(blurred_ptr + above + x, mask=inside, other=0)
    c = tl.load(blurred_ptr + above + right, mask=inside, other=0)
    d = tl.load(blurred_ptr + row + left, mask=inside, other=0)
    f = tl.load(blurred_ptr + row + right, mask=inside, other=0)
    g = tl.load(blurred_ptr + below + left, mask=inside, other=0)
    i = tl.load(blurred_ptr + below + x, mask=inside, other=0)
    j = tl.load(blurred_ptr + below + right, mask=inside, other=0)
    return 3 * ((c - a) + (j - g)) + 10 * (f - d), 3 * ((g - a) + (j - c)) + 10 * (i - b)


@triton.jit
def largest(x):
    """Of numbers >= 0; NaN if there is one."""
    return tl.max(x, axis=0) + tl.sum(tl.where(x != x, x, 0), axis=0)
