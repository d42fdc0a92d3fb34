"""Eq. 30-34. For each map x of a present class, G its blur, gx and gy the Scharr slopes of G, all border-replicated:

    M = |(gx, gy)|,  E = M / max M,  u = relu(E - (S + delta)) 1[S < tau]
    L = (1/N) sum u^gamma + lambda u 1[E > tau_hard],  N = sum 1[S < tau]
    g = (gamma u^(gamma-1) + lambda 1[E > tau_hard]) 1[u > 0] / max M,  dx = blur^T scharr^T (g gx / M, g gy / M) / N

Each stencil needs what the one before made of its neighbours, and registers of a tile cannot be shifted: one kernel for
each of blur, maximum, loss, scharr^T, blur^T, with their results in memory between. The adjoints gather: a border pixel
also takes what the replicated border would get. Pixels that do not count are blurred like others; where the filters see
one, the slopes are 0, whatever was made of it.

The host does not know how many classes an image has. A kernel before lists them, the present ones first, and the
programs of a run of pixels share out that list: `groups` of them, each with every `groups`th class, so many that a GPU
is full where images are few and one by one where they are many. The last kernel goes on to the absent classes, whose
gradient is zeros. What does not depend on the class is done once for all classes of a program.

Bytes at 32x20x128x128 in fp32 with 48 present maps: gradient 41.9 MB, maps 3.1 MB, S 2.1 MB; what goes through memory
between the kernels (9 maps' worth, 28 MB) stays in an L2 cache of 32 MB or more. 90 loads a pixel of a present map from
L1, 70 M in all: little beside writing the gradient. 4096 programs a kernel, 2560 of which leave at once; a program for
each map's run of pixels would be 20480, of which 18944 would. Expected: the time of the gradient, and seven launches.
With all maps present it is 13 times as much, limited by the memory between (0.4 GB). Everything after the load is fp32
(fp64 for fp64); the fp16 gradient is stored times a factor, which 1/N makes up for, and cut off where even that is too
little.
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
PROGRAMS = 4096  # of a kernel, at least where there are classes enough: an H100 runs 2112 of four warps at a time
CLASSES = 32
SIZE = ["k", "h", "w"]  # no kernel is better for knowing them, each would be compiled for many
FACTOR = 2**-6  # of the gradient that fp16 stores, which ends at 65504: a map of little contrast has a steep one


@triton.jit(do_not_specialize=["k"])
def list_kernel(label_ptr, order_ptr, counts_ptr, k, CLASSES: tl.constexpr):
    """The classes of an image, present ones first, and how many those are."""
    b = tl.program_id(0)
    count = tl.zeros([], tl.int32)
    for start in range(0, k, CLASSES):
        c = start + tl.arange(0, CLASSES)
        present = (tl.load(label_ptr + b * k + c, mask=c < k, other=0) > 0).to(tl.int32)
        so_far = count + tl.cumsum(present, axis=0)
        tl.store(order_ptr + b * k + tl.where(present > 0, so_far - 1, k - 1 - (c - so_far)), c, mask=c < k)
        count += tl.sum(present, axis=0)
    tl.store(counts_ptr + b, count)


@triton.jit
def place(w, BLOCK: tl.constexpr):
    """What a program works on, of a grid of (runs of pixels, groups of classes, images): an image, which of its
    classes, pixels i = (y, x)."""
    # said to be multiples of 1 and no more: else a thread would take neighbouring pixels, and each load of a warp, at
    # an offset that nothing is known of, would be strided
    i = tl.multiple_of(tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), 1)
    return tl.program_id(2).to(tl.int64), tl.program_id(1), i, i // w, i % w


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
def blur_kernel(cam_ptr, order_ptr, present_ptr, blurred_ptr, k, h, w, BLOCK: tl.constexpr):
    n = h * w
    b, group, i, y, x = place(w, BLOCK)
    wide: tl.constexpr = blurred_ptr.dtype.element_ty
    for slot in range(group, tl.load(present_ptr + b), tl.num_programs(1)):
        plane = b * k + tl.load(order_ptr + b * k + slot)
        total = tl.zeros([BLOCK], wide)
        for dy in tl.static_range(-2, 3):
            row = plane * n + clamp(y + dy, h) * w
            across = tl.zeros([BLOCK], wide)
            for dx in tl.static_range(-2, 3):
                value = tl.load(cam_ptr + row + clamp(x + dx, w), mask=i < n, other=0).to(wide)
                across += BLUR_5[dx if dx > 0 else -dx] * value
            total += BLUR_5[dy if dy > 0 else -dy] * across
        tl.store(blurred_ptr + plane * n + i, total, mask=i < n)


@triton.jit
def whole_window(invalid_ptr, b, i, n, VALID: tl.constexpr):
    """Whether all that the filters see around pixels i counts."""
    if VALID:
        return tl.load(invalid_ptr + b * n + i, mask=i < n, other=1) == 0
    else:
        return i < n


@triton.jit
def edges(blurred_ptr, counts, y, x, h, w, VALID: tl.constexpr):
    """Slopes and M; 0 where not all that the filters see counts."""
    gx, gy = scharr(blurred_ptr, y, x, h, w)
    if VALID:
        gx, gy = tl.where(counts, gx, 0), tl.where(counts, gy, 0)
    return gx, gy, tl.sqrt(gx * gx + gy * gy)


@triton.jit(do_not_specialize=SIZE)
def peak_kernel(
    blurred_ptr,
    order_ptr,
    present_ptr,
    invalid_ptr,
    peaks_ptr,
    k,
    h,
    w,
    VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = h * w
    b, group, i, y, x = place(w, BLOCK)
    present = tl.load(present_ptr + b)
    if group >= present:
        return
    counts = whole_window(invalid_ptr, b, i, n, VALID)
    for slot in range(group, present, tl.num_programs(1)):
        plane = b * k + tl.load(order_ptr + b * k + slot)
        _, _, m = edges(blurred_ptr + plane * n, counts, y, x, h, w, VALID)
        tl.store(peaks_ptr + plane * tl.num_programs(0) + tl.program_id(0), largest(m))


@triton.jit(do_not_specialize=SIZE)
def loss_kernel(
    blurred_ptr,
    order_ptr,
    present_ptr,
    invalid_ptr,
    peaks_ptr,
    support_ptr,
    slopes_ptr,
    sums_ptr,
    counts_ptr,
    k,
    h,
    w,
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
    n = h * w
    b, group, i, y, x = place(w, BLOCK)
    blocks, groups = tl.num_programs(0), tl.num_programs(1)
    program = (tl.program_id(2) * groups + group) * blocks + tl.program_id(0)
    wide: tl.constexpr = sums_ptr.dtype.element_ty
    present = tl.load(present_ptr + b)
    if group >= present:
        tl.store(sums_ptr + program, tl.zeros([], wide))
        tl.store(counts_ptr + program, 0)
        return
    tau, delta, gamma = tl.full([], tau, wide), tl.full([], delta, wide), tl.full([], gamma, wide)
    tau_hard, lambda_hard = tl.full([], tau_hard, wide), tl.full([], lambda_hard, wide)
    counts = whole_window(invalid_ptr, b, i, n, VALID)
    s = tl.load(support_ptr + b * n + i, mask=i < n, other=float("inf")).to(wide)
    weak = (s < tau) & counts
    loss = tl.zeros([BLOCK], wide)
    for slot in range(group, present, groups):
        plane = b * k + tl.load(order_ptr + b * k + slot)
        peaks = tl.zeros([PEAKS], wide)
        for start in range(0, blocks, PEAKS):
            j = start + tl.arange(0, PEAKS)
            peak = tl.load(peaks_ptr + plane * blocks + j, mask=j < blocks, other=0)
            peaks = tl.where((peak > peaks) | (peak != peak), peak, peaks)
        peak = largest(peaks)
        peak = tl.where(peak < 1e-12, 1e-12, peak)

        gx, gy, m = edges(blurred_ptr + plane * n, counts, y, x, h, w, VALID)
        e = m / peak
        u = e - (s + delta)
        u = tl.where(weak, tl.where(u < 0, 0, u), 0)  # a NaN stays one
        hard = tl.where(e > tau_hard, lambda_hard, 0)
        loss += power(u, gamma, GAMMA) + hard * u
        if NEED_GRAD:
            slope = gamma * power(u, gamma - 1, GAMMA - 1) + hard
            slope = tl.full([], factor, wide) * slope / peak / tl.where(m == 0, 1, m)
            slope = tl.where((u == 0) | (m == 0), 0, slope)
            tl.store(slopes_ptr + 2 * plane * n + i, slope * gx, mask=i < n)
            tl.store(slopes_ptr + (2 * plane + 1) * n + i, slope * gy, mask=i < n)
    tl.store(sums_ptr + program, tl.sum(loss, axis=0))
    classes = (present - group + groups - 1) // groups
    tl.store(counts_ptr + program, classes * tl.sum(weak.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=SIZE)
def scharr_adjoint_kernel(slopes_ptr, order_ptr, present_ptr, out_ptr, k, h, w, BLOCK: tl.constexpr):
    n = h * w
    b, group, i, y, x = place(w, BLOCK)
    wide: tl.constexpr = out_ptr.dtype.element_ty
    top, bottom = (y == 0).to(wide), (y == h - 1).to(wide)
    left, right = (x == 0).to(wide), (x == w - 1).to(wide)
    for slot in range(group, tl.load(present_ptr + b), tl.num_programs(1)):
        plane = b * k + tl.load(order_ptr + b * k + slot)
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
def blur_adjoint_kernel(in_ptr, order_ptr, present_ptr, grad_ptr, k, h, w, BLOCK: tl.constexpr):
    n = h * w
    b, group, i, y, x = place(w, BLOCK)
    wide: tl.constexpr = in_ptr.dtype.element_ty
    present = tl.load(present_ptr + b)
    for slot in range(group, k, tl.num_programs(1)):
        plane = b * k + tl.load(order_ptr + b * k + slot)
        out = tl.zeros([BLOCK], wide)
        if slot < present:
            for dy in tl.static_range(-2, 3):
                across = tl.zeros([BLOCK], wide)
                for dx in tl.static_range(-2, 3):
                    inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w) & (i < n)
                    value = tl.load(in_ptr + plane * n + i + dy * w + dx, mask=inside, other=0)
                    across += blur_share(x, w, dx, wide) * value
                out += blur_share(y, h, dy, wide) * across
        tl.store(grad_ptr + plane * n + i, narrow(out, grad_ptr.dtype.element_ty), mask=i < n)


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
    x, s, tags = cam.contiguous(), support.contiguous(), label.contiguous()
    b, k, h, w = x.shape
    order = x.new_empty((b, k), dtype=torch.int32)
    present = order.new_empty(b)
    tags = tags.view(torch.uint8) if tags.dtype == torch.bool else tags
    list_kernel[(b,)](tags, order, present, k, CLASSES=CLASSES, num_warps=1)
    masked = valid is not None
    invalid = invalid_in_window(valid.contiguous().view(torch.uint8), REACH) if masked else order  # else not read
    factor = FACTOR if x.dtype == torch.float16 else 1.0
    blocks = triton.cdiv(h * w, BLOCK)
    groups = min(k, triton.cdiv(PROGRAMS, b * blocks))
    size, grid = (k, h, w), (blocks, groups, b)
    blurred = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    peaks = blurred.new_empty((b, k, blocks))
    sums, counts = blurred.new_empty(grid), order.new_empty(grid)
    slopes = blurred.new_empty((2, *x.shape) if need_grad else 0)
    blur_kernel[grid](x, order, present, blurred, *size, BLOCK=BLOCK)
    peak_kernel[grid](blurred, order, present, invalid, peaks, *size, VALID=masked, BLOCK=BLOCK)
    loss_kernel[grid](
        blurred,
        order,
        present,
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
    scharr_adjoint_kernel[grid](slopes, order, present, blurred, *size, BLOCK=BLOCK)
    blur_adjoint_kernel[grid](blurred, order, present, grad, *size, BLOCK=BLOCK)
    return loss, grad, scale
