"""Eq. 35-39, K = f / (sum_k f + eps) with f = relu(features), n the pixels of a window that count, m = max_k K:

    mean_k = box(K_k) / n,  S = sum_k K_k mean_k,  L = (1 - S) m
    dK_k = (1 - S) 1[k = first of the largest] - m mean_k - box(m K_k / n)_k
    df_k = (dK_k - sum_j dK_j K_j) / (sum_k f + eps)     where features > 0

Both boxes are of functions of one pixel, so loss and gradient are one stencil, and f is read from memory once. A
program holds all classes of PIX neighbouring pixels of a row in registers and walks down ROWS rows: the two boxes gain
the row that enters and lose, computed anew and thus the same bits, the row that leaves. Shifts along the row are loads
(registers of a tile cannot be shifted), which the L1 cache serves; K is made from f at each of them, which is cheaper
than to store it. One warp a program: at 20 classes two threads hold those of a pixel, and a sum is one shuffle.

Floor at 32x20x128x128, fp32: f and its gradient once, 83.9 MB. Loads of the 7x7 window: (7 * 7 + 15 * 14) / 16 + 1 = 17
a number instead of 49, 0.7 GB through L1; some 10 instructions with each, on 32 (of 20) classes, 2.9 G: about as long
as the memory takes on a GPU that does 40 operations in the time of a byte, so up to twice the floor is expected there.
fp16 halves the floor and nothing else; its gradient is stored times a factor, which 1/N makes up for. Everything
between load and store is fp32 (fp64 for fp64).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._sums import mean
from ._windows import invalid_in_window
from .scale_gradient import narrow

ROWS = 16
TILE = 512  # classes x pixels of a warp: 16 registers a thread for each such tile
REGISTERS = 168  # left alone, the compiler takes more and fits fewer warps
STEEP = 1e-4  # df is at most 3.42 / eps: with a smaller eps fp16, which ends at 65504, stores it scaled by their ratio


@triton.jit
def read_pixels(f_ptr, valid_ptr, plane, y, x, k, w, eps, VALID: tl.constexpr, wide: tl.constexpr):
    """f [KP, PIX] of pixels (y, x), zeros where they do not count; 1 / (sum_k f + eps), and max_k f."""
    inside = (x >= 0) & (x < w)
    offset = y * w + x
    if VALID:
        inside = inside & (tl.load(valid_ptr + offset, mask=inside, other=0) != 0)
    c = tl.arange(0, plane.shape[0])[:, None]
    f = tl.load(f_ptr + (plane + offset[None, :]), mask=(c < k) & inside[None, :], other=0).to(wide)
    f = tl.where(f < 0, 0, f)  # a NaN stays one
    return f, 1 / (tl.sum(f, axis=0) + eps), tl.max(f, axis=0)


@triton.jit
def window_size(invalid_ptr, y, x, h, w, RADIUS_Y: tl.constexpr, RADIUS_X: tl.constexpr, VALID: tl.constexpr):
    """Pixels that count in the windows around (y, x), at least 1."""
    rows = tl.minimum(y + RADIUS_Y, h - 1) - tl.maximum(y - RADIUS_Y, 0) + 1
    n = rows * (tl.minimum(x + RADIUS_X, w - 1) - tl.maximum(x - RADIUS_X, 0) + 1)
    if VALID:
        n -= tl.load(invalid_ptr + y * w + x, mask=(x >= 0) & (x < w), other=0)
    return tl.maximum(n, 1)


@triton.jit
def row_sums(
    f_ptr,
    valid_ptr,
    invalid_ptr,
    plane,
    y,
    x,
    k,
    h,
    w,
    eps,
    RADIUS_Y: tl.constexpr,
    RADIUS_X: tl.constexpr,
    VALID: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    wide: tl.constexpr,
):
    """Sums of K and of m K / n over the window's columns in row y."""
    sums = tl.zeros([plane.shape[0], x.shape[0]], wide)
    weighted = sums
    if (y >= 0) & (y < h):
        for dx in range(-RADIUS_X, RADIUS_X + 1):
            f, a, top = read_pixels(f_ptr, valid_ptr, plane, y, x + dx, k, w, eps, VALID, wide)
            own = f * a[None, :]
            sums += own
            if NEED_GRAD:
                n = window_size(invalid_ptr, y, x + dx, h, w, RADIUS_Y, RADIUS_X, VALID)
                weighted += own * (top * a / n.to(wide))[None, :]
    return sums, weighted


@triton.jit(do_not_specialize=["k", "h", "w", "bands", "strips"])
def local_consistency_kernel(
    f_ptr,
    valid_ptr,
    invalid_ptr,
    grad_ptr,
    sums_ptr,
    counts_ptr,
    k,
    h,
    w,
    bands,
    strips,
    eps: tl.float64,
    factor: tl.float64,
    RADIUS_Y: tl.constexpr,
    RADIUS_X: tl.constexpr,
    VALID: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    LARGE: tl.constexpr,
    KP: tl.constexpr,
    PIX: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // (bands * strips)).to(tl.int64)
    top_row = program // strips % bands * ROWS
    # said to be multiples of 1 and no more: else a thread would take neighbouring pixels, to load them at once, and the
    # sums over classes would go from thread to thread
    x = tl.multiple_of(program % strips * PIX + tl.arange(0, PIX), 1)
    c = tl.arange(0, KP)[:, None]
    plane = (c.to(tl.int64) if LARGE else c) * (h * w)
    f_ptr += b * k * h * w
    grad_ptr += b * k * h * w
    valid_ptr += b * h * w
    invalid_ptr += b * h * w
    wide: tl.constexpr = sums_ptr.dtype.element_ty
    eps, factor = tl.full([], eps, wide), tl.full([], factor, wide)

    box = tl.zeros([KP, PIX], wide)
    weighted_box = tl.zeros([KP, PIX], wide)
    for y in range(top_row - RADIUS_Y, top_row + RADIUS_Y):
        row, weighted = row_sums(
            f_ptr, valid_ptr, invalid_ptr, plane, y, x, k, h, w, eps, RADIUS_Y, RADIUS_X, VALID, NEED_GRAD, wide
        )
        box += row
        weighted_box += weighted

    loss = tl.zeros([PIX], wide)
    count = tl.zeros([PIX], tl.int32)
    for y in range(top_row, tl.minimum(top_row + ROWS, h)):
        row, weighted = row_sums(
            f_ptr,
            valid_ptr,
            invalid_ptr,
            plane,
            y + RADIUS_Y,
            x,
            k,
            h,
            w,
            eps,
            RADIUS_Y,
            RADIUS_X,
            VALID,
            NEED_GRAD,
            wide,
        )
        box += row
        weighted_box += weighted

        f, a, top = read_pixels(f_ptr, valid_ptr, plane, y, x, k, w, eps, VALID, wide)
        own = f * a[None, :]
        m = top * a
        box_mean = box / window_size(invalid_ptr, y, x, h, w, RADIUS_Y, RADIUS_X, VALID).to(wide)[None, :]
        disagreement = 1 - tl.sum(own * box_mean, axis=0)
        loss += disagreement * m  # 0 beyond the map and at invalid pixels: K = 0 there
        if VALID:
            count += (tl.load(valid_ptr + y * w + x, mask=x < w, other=0) != 0).to(tl.int32)
        else:
            count += (x < w).to(tl.int32)
        if NEED_GRAD:
            first = tl.min(tl.where(f == top[None, :], c, KP), axis=0)
            dk = tl.where(c == first[None, :], disagreement[None, :], 0) - m[None, :] * box_mean - weighted_box
            df = (dk - tl.sum(dk * own, axis=0)[None, :]) * (factor * a)[None, :]
            df = narrow(tl.where(f <= 0, 0, df), grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + (plane + (y * w + x)[None, :]), df, mask=(c < k) & (x < w)[None, :])

        row, weighted = row_sums(
            f_ptr,
            valid_ptr,
            invalid_ptr,
            plane,
            y - RADIUS_Y,
            x,
            k,
            h,
            w,
            eps,
            RADIUS_Y,
            RADIUS_X,
            VALID,
            NEED_GRAD,
            wide,
        )
        box -= row
        weighted_box -= weighted
    tl.store(sums_ptr + program, tl.sum(loss, axis=0))
    tl.store(counts_ptr + program, tl.sum(count, axis=0))


def local_consistency_loss(
    features: Tensor, window: int, eps: float, valid: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    f = features.contiguous()
    b, k, h, w = f.shape
    radius = window // 2
    grad = torch.empty_like(f) if need_grad else f.new_empty(0)
    mask = invalid = f.new_empty(0, dtype=torch.uint8)  # read only with `valid`
    if valid is not None:
        mask = valid.contiguous().view(torch.uint8)
        invalid = invalid_in_window(mask, radius)
    factor = min(1.0, eps / STEEP) if f.dtype == torch.float16 else 1.0
    classes = triton.next_power_of_2(k)
    pixels = min(max(TILE // classes, 1), 64)
    bands, strips = triton.cdiv(h, ROWS), triton.cdiv(w, pixels)
    sums = f.new_empty(b * bands * strips, dtype=torch.promote_types(f.dtype, torch.float32))
    counts = torch.empty_like(sums, dtype=torch.int32)
    local_consistency_kernel[(b * bands * strips,)](
        f,
        mask,
        invalid,
        grad,
        sums,
        counts,
        k,
        h,
        w,
        bands,
        strips,
        eps,
        factor,
        RADIUS_Y=min(radius, h - 1),
        RADIUS_X=min(radius, w - 1),
        VALID=valid is not None,
        NEED_GRAD=need_grad,
        LARGE=k * h * w >= 2**31,
        KP=classes,
        PIX=pixels,
        ROWS=ROWS,
        num_warps=max(classes // TILE, 1),
        maxnreg=REGISTERS,
    )
    loss, scale = mean(sums, counts, factor)
    return loss, grad, scale
