"""Eq. 30-34. For each map x of a present class, G its blur, gx and gy the Scharr slopes of G, all border-replicated:

    M = |(gx, gy)|,  E = M / max M,  u = relu(E - (S + delta)) 1[S < tau]
    L = (1/N) sum u^gamma + lambda u 1[E > tau_hard],  N = sum 1[S < tau]
    g = (gamma u^(gamma-1) + lambda 1[E > tau_hard]) 1[u > 0] / max M,  dx = blur^T scharr^T (g gx / M, g gy / M) / N

Each stencil needs what the one before made of its neighbours, and registers of a tile cannot be shifted: one kernel for
each of blur, maximum, loss, scharr^T, blur^T, with their results in memory between. The adjoints gather: a border pixel
also takes what the replicated border would get. Every program reads the label of its map first and leaves where the
class is absent; the last kernel writes that map's zeros.

Bytes at 32x20x128x128 in fp32 with 48 present maps: gradient 41.9 MB, maps 3.1 MB, S 2.1 MB; what goes through memory
between the kernels (9 maps' worth, 28 MB) stays in an L2 cache of 32 MB or more. 90 loads a pixel of a present map from
L1, 70 M in all: little beside writing the gradient. Expected: that time, and six launches. With all maps present it is
13 times as much, limited by the memory between (0.4 GB). Everything after the load is fp32 (fp64 for fp64); the fp16
gradient is stored times a factor, which 1/N makes up for, and cut off where even that does not fit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._filters import BLUR_5, clamp, largest, scharr
from ._sums import mean
from ._windows import invalid_in_window
from .scale_gradient import narrow

REACH = 3  # pixels that blur (2) and Scharr (1) look around
BLOCK = 512
PEAKS = 1024
SIZE = ["k", "h", "w", "blocks"]  # no kernel is better for knowing them, each would be compiled for many
FACTOR = 2**-6  # of the gradient that fp16 stores, which ends at 65504: a map of little contrast has a steep one


@triton.jit
def place(k, n, w, blocks, BLOCK: tl.constexpr):
    """What a program works on: the map (b, c) as one number, its image, and pixels i = (y, x) of it."""
    program = tl.program_id(0)
    # said to be multiples of 1 and no more: else a thread would take neighbouring pixels, and each load of a warp, at
    # an offset that nothing is known of, would be strided
    i = tl.multiple_of(program % blocks * BLOCK + tl.arange(0, BLOCK), 1)
    plane = (program // blocks).to(tl.int64)
    return plane, plane // k, i, i // w, i % w


@triton.jit
def power(u, exponent, EXPONENT: tl.constexpr):
    """u ** exponent, 0 at 0; EXPONENT: the same, if it is 1 or 2."""
    if EXPONENT == 1:
        return u
    elif EXPONENT == 2:
        return u * u
    else:
        return tl.where(u == 0, 0, tl.exp2(exponent * tl.log2(tl.where(u == 0, 1, u))))


@triton.jit(do_not_specialize=SIZE)
def blur_kernel(cam_ptr, active_ptr, valid_ptr, blurred_ptr, k, h, w, blocks, VALID: tl.constexpr, BLOCK: tl.constexpr):
    n = h * w
    plane, b, i, y, x = place(k, n, w, blocks, BLOCK)
    if tl.load(active_ptr + plane) == 0:
        return
    wide: tl.constexpr = blurred_ptr.dtype.element_ty
    total = tl.zeros([BLOCK], wide)
    for dy in tl.static_range(-2, 3):
        row = clamp(y + dy, h) * w
        across = tl.zeros([BLOCK], wide)
        for dx in tl.static_range(-2, 3):
            j = row + clamp(x + dx, w)
            read = i < n
            if VALID:
                read = read & (tl.load(valid_ptr + b * n + j, mask=read, other=0) != 0)
            value = tl.load(cam_ptr + plane * n + j, mask=read, other=0).to(wide)
            across += BLUR_5[dx if dx > 0 else -dx] * value
        total += BLUR_5[dy if dy > 0 else -dy] * across
    tl.store(blurred_ptr + plane * n + i, total, mask=i < n)


@triton.jit
def edges(blurred_ptr, invalid_ptr, plane, b, i, y, x, h, w, VALID: tl.constexpr):
    """Slopes and M; M = 0 where what the filters see is not all valid."""
    gx, gy = scharr(blurred_ptr + plane * h * w, y, x, h, w)
    m = tl.sqrt(gx * gx + gy * gy)
    if VALID:
        m = tl.where(tl.load(invalid_ptr + b * h * w + i, mask=i < h * w, other=1) == 0, m, 0)
    return gx, gy, m


@triton.jit(do_not_specialize=SIZE)
def peak_kernel(
    blurred_ptr, active_ptr, invalid_ptr, peaks_ptr, k, h, w, blocks, VALID: tl.constexpr, BLOCK: tl.constexpr
):
    plane, b, i, y, x = place(k, h * w, w, blocks, BLOCK)
    if tl.load(active_ptr + plane) == 0:
        return
    _, _, m = edges(blurred_ptr, invalid_ptr, plane, b, i, y, x, h, w, VALID)
    tl.store(peaks_ptr + tl.program_id(0), largest(m))


@triton.jit(do_not_specialize=SIZE)
def loss_kernel(
    blurred_ptr,
    active_ptr,
    invalid_ptr,
    peaks_ptr,
    support_ptr,
    slopes_ptr,
    sums_ptr,
    counts_ptr,
    k,
    h,
    w,
    blocks,
    tau: tl.float64,
    delta: tl.float64,
    gamma: tl.float64,
    tau_hard: tl.float64,
    lambda_hard: tl.float64,
    factor: tl.float64,
    GAMMA: tl.constexpr,
    VALID: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    PEAKS: tl.constexpr,
):
    program = tl.program_id(0)
    n = h * w
    plane, b, i, y, x = place(k, n, w, blocks, BLOCK)
    wide: tl.constexpr = sums_ptr.dtype.element_ty
    if tl.load(active_ptr + plane) == 0:
        tl.store(sums_ptr + program, tl.zeros([], wide))
        tl.store(counts_ptr + program, 0)
        return
    tau, delta, gamma = tl.full([], tau, wide), tl.full([], delta, wide), tl.full([], gamma, wide)
    tau_hard, lambda_hard = tl.full([], tau_hard, wide), tl.full([], lambda_hard, wide)
    peaks = tl.zeros([PEAKS], wide)
    for start in range(0, blocks, PEAKS):
        j = start + tl.arange(0, PEAKS)
        peak = tl.load(peaks_ptr + plane * blocks + j, mask=j < blocks, other=0)
        peaks = tl.where((peak > peaks) | (peak != peak), peak, peaks)
    peak = largest(peaks)
    peak = tl.where(peak < 1e-12, 1e-12, peak)

    gx, gy, m = edges(blurred_ptr, invalid_ptr, plane, b, i, y, x, h, w, VALID)
    e = m / peak
    s = tl.load(support_ptr + b * n + i, mask=i < n, other=float("inf")).to(wide)
    weak = s < tau
    if VALID:
        weak = weak & (tl.load(invalid_ptr + b * n + i, mask=i < n, other=1) == 0)
    u = e - (s + delta)
    u = tl.where(weak, tl.where(u < 0, 0, u), 0)  # a NaN stays one
    hard = tl.where(e > tau_hard, lambda_hard, 0)
    tl.store(sums_ptr + program, tl.sum(power(u, gamma, GAMMA) + hard * u, axis=0))
    tl.store(counts_ptr + program, tl.sum(weak.to(tl.int32), axis=0))
    if NEED_GRAD:
        slope = (
            tl.full([], factor, wide) * (gamma * power(u, gamma - 1, GAMMA - 1) + hard) / peak / tl.where(m == 0, 1, m)
        )
        slope = tl.where((u == 0) | (m == 0), 0, slope)
        tl.store(slopes_ptr + 2 * plane * n + i, slope * gx, mask=i < n)
        tl.store(slopes_ptr + (2 * plane + 1) * n + i, slope * gy, mask=i < n)


@triton.jit(do_not_specialize=SIZE)
def scharr_adjoint_kernel(slopes_ptr, active_ptr, out_ptr, k, h, w, blocks, BLOCK: tl.constexpr):
    n = h * w
    plane, _, i, y, x = place(k, n, w, blocks, BLOCK)
    if tl.load(active_ptr + plane) == 0:
        return
    wide: tl.constexpr = out_ptr.dtype.element_ty
    top, bottom = (y == 0).to(wide), (y == h - 1).to(wide)
    left, right = (x == 0).to(wide), (x == w - 1).to(wide)
    out = tl.zeros([BLOCK], wide)
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w) & (i < n)
            j = 2 * plane * n + i + dy * w + dx
            # the taps by which (y + dy, x + dx) sees (y, x), on the border with those that stick out
            smooth_y = 10 + 3 * (top + bottom) if dy == 0 else 3
            smooth_x = 10 + 3 * (left + right) if dx == 0 else 3
            slope_y = bottom - top if dy == 0 else -dy
            slope_x = right - left if dx == 0 else -dx
            out += smooth_y * slope_x * tl.load(slopes_ptr + j, mask=inside, other=0)
            out += slope_y * smooth_x * tl.load(slopes_ptr + n + j, mask=inside, other=0)
    tl.store(out_ptr + plane * n + i, out, mask=i < n)


@triton.jit
def blur_share(i, n, OFFSET: tl.constexpr, wide: tl.constexpr):
    """The taps by which i + OFFSET sees i; on the border with those that stick out."""
    o: tl.constexpr = OFFSET if OFFSET > 0 else -OFFSET
    beyond: tl.constexpr = BLUR_5[1] + BLUR_5[2] if o == 0 else (BLUR_5[2] if o == 1 else 0.0)
    return BLUR_5[o] + beyond * ((i == 0).to(wide) + (i == n - 1).to(wide))


@triton.jit(do_not_specialize=SIZE)
def blur_adjoint_kernel(in_ptr, active_ptr, grad_ptr, k, h, w, blocks, BLOCK: tl.constexpr):
    n = h * w
    plane, _, i, y, x = place(k, n, w, blocks, BLOCK)
    grad_ptr += plane * n
    if tl.load(active_ptr + plane) == 0:
        tl.store(grad_ptr + i, tl.zeros([BLOCK], grad_ptr.dtype.element_ty), mask=i < n)
        return
    wide: tl.constexpr = in_ptr.dtype.element_ty
    out = tl.zeros([BLOCK], wide)
    for dy in tl.static_range(-2, 3):
        across = tl.zeros([BLOCK], wide)
        for dx in tl.static_range(-2, 3):
            inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w) & (i < n)
            value = tl.load(in_ptr + plane * n + i + dy * w + dx, mask=inside, other=0)
            across += blur_share(x, w, dx, wide) * value
        out += blur_share(y, h, dy, wide) * across
    tl.store(grad_ptr + i, narrow(out, grad_ptr.dtype.element_ty), mask=i < n)


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
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, s = cam.contiguous(), support.contiguous()
    b, k, h, w = x.shape
    active = (label.contiguous() > 0).view(torch.uint8)
    masked = valid is not None
    mask = valid.contiguous().view(torch.uint8) if masked else active  # not read without `valid`
    invalid = invalid_in_window(mask, REACH) if masked else active
    factor = FACTOR if x.dtype == torch.float16 else 1.0
    size = (k, h, w, triton.cdiv(h * w, BLOCK))
    grid = (b * k * size[3],)
    blurred = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    peaks = blurred.new_empty(grid)
    sums, counts = torch.empty_like(peaks), torch.empty_like(peaks, dtype=torch.int32)
    slopes = blurred.new_empty((2, *x.shape) if need_grad else 0)
    blur_kernel[grid](x, active, mask, blurred, *size, VALID=masked, BLOCK=BLOCK)
    peak_kernel[grid](blurred, active, invalid, peaks, *size, VALID=masked, BLOCK=BLOCK)
    loss_kernel[grid](
        blurred,
        active,
        invalid,
        peaks,
        s,
        slopes,
        sums,
        counts,
        *size,
        tau,
        delta,
        gamma,
        tau_hard,
        lambda_hard,
        factor,
        GAMMA=gamma if gamma in (1, 2) else 0.0,
        VALID=masked,
        NEED_GRAD=need_grad,
        BLOCK=BLOCK,
        PEAKS=PEAKS,
    )
    loss, scale = mean(sums, counts, factor)
    if not need_grad:
        return loss, x.new_empty(0), scale
    grad = torch.empty_like(x)
    scharr_adjoint_kernel[grid](slopes, active, blurred, *size, BLOCK=BLOCK)
    blur_adjoint_kernel[grid](blurred, active, grad, *size, BLOCK=BLOCK)
    return loss, grad, scale
