"""Eq. 27, over the present classes c of a pixel (x clamped to [0, 1], first = the first of the largest, t its target):

    b = 1 - max_c x_c,  z = b + sum_c x_c,  p = v / z  with  v = b if t = 0 else x_{t-1}
    L = -log((p + s) / (1 + s C)),  C = 1 + present classes
    dL/dx_c = -(1[c = t - 1] - (1[t = 0] if c = first else p)) / ((p + s) z)     where 0 <= x_c <= 1 before clamping

One program per run of pixels of one image. It goes over the classes twice: for max, z and v, and for the gradient,
when the maps come from the cache. Maps of absent classes are not read, their gradient is written as zeros. A kernel
before counts the pixels of either kind in the batch: with `balance` the weight of a pixel depends on it, and one more
sums the counts up.

Bytes, at 32x20x128x128 in fp32 with 1.5 classes an image: targets (int64) 4.2 MB twice, maps 3.1 MB, gradient 41.9 MB
(88 MB with all classes present). Some 25 operations a pixel and present class, 1 an absent one: the memory decides, and
what is expected is the time of writing the gradient. Everything between load and store is fp32 (fp64 for fp64).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._sums import BLOCK as SUM_BLOCK
from ._sums import total
from .scale_gradient import narrow

BLOCK = 1024
STEEP = 0.01  # with a smaller `smooth` the stored gradient is scaled down by their ratio: fp16 ends at 65504


@triton.jit
def read_targets(target_ptr, present_ptr, b, i, k, n, IGNORE: tl.constexpr, CLASSES: tl.constexpr):
    """Targets of pixels i of image b, whether they count, and the number of present classes."""
    c = tl.arange(0, CLASSES)
    present_ptr += b * k
    classes = tl.sum(tl.load(present_ptr + c, mask=c < k, other=0).to(tl.int32), axis=0)
    t = tl.load(target_ptr + b * n + i, mask=i < n, other=0).to(tl.int64)
    known = (i < n) & (t != IGNORE) & (t >= 0) & (t <= k)
    t = tl.where(known, t, 0).to(tl.int32)
    present = tl.load(present_ptr + t - 1, mask=known & (t > 0), other=0).to(tl.int32)
    return t, known & (tl.where(t == 0, classes, present) > 0), classes


@triton.jit(do_not_specialize=["k", "blocks"])
def count_kernel(
    target_ptr, present_ptr, counts_ptr, k, n, blocks, IGNORE: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    i = program % blocks * BLOCK + tl.arange(0, BLOCK)
    t, counts, _ = read_targets(target_ptr, present_ptr, (program // blocks).to(tl.int64), i, k, n, IGNORE, CLASSES)
    tl.store(counts_ptr + program, tl.sum((counts & (t == 0)).to(tl.int32), axis=0))
    tl.store(counts_ptr + programs + program, tl.sum((counts & (t > 0)).to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["programs"])
def totals_kernel(counts_ptr, totals_ptr, programs, BLOCK: tl.constexpr):
    tl.store(totals_ptr, total(counts_ptr, programs, BLOCK))
    tl.store(totals_ptr + 1, total(counts_ptr + programs, programs, BLOCK))


@triton.jit(do_not_specialize=["k", "blocks"])
def target_nll_kernel(
    cam_ptr,
    target_ptr,
    present_ptr,
    totals_ptr,
    sums_ptr,
    grad_ptr,
    k,
    n,
    blocks,
    smooth: tl.float64,
    factor: tl.float64,
    IGNORE: tl.constexpr,
    BALANCE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    b = (program // blocks).to(tl.int64)
    i = program % blocks * BLOCK + tl.arange(0, BLOCK)
    t, counts, classes = read_targets(target_ptr, present_ptr, b, i, k, n, IGNORE, CLASSES)
    present_ptr += b * k
    x_ptr = cam_ptr + b * k * n

    wide: tl.constexpr = sums_ptr.dtype.element_ty
    smooth = tl.full([], smooth, wide)
    largest = tl.full([BLOCK], -1, wide)
    first = tl.zeros([BLOCK], tl.int32)
    z = tl.zeros([BLOCK], wide)
    v = tl.zeros([BLOCK], wide)
    for c in range(k):
        if tl.load(present_ptr + c) > 0:
            x = tl.load(x_ptr + i, mask=counts, other=0).to(wide)
            x = tl.where(x < 0, 0, tl.where(x > 1, 1, x))  # a NaN stays one
            larger = x > largest
            largest = tl.where(larger, x, largest)
            first = tl.where(larger, c, first)
            v = tl.where(t == c + 1, x, v)
            z += x
        x_ptr += n
    v = tl.where(t == 0, 1 - largest, v)
    z += 1 - largest
    p = v / z
    nll = tl.where(counts, -tl.log((p + smooth) / (1 + smooth * (1 + classes).to(wide))), 0)
    tl.store(sums_ptr + program, tl.sum(tl.where(t == 0, nll, 0), axis=0))
    tl.store(sums_ptr + programs + program, tl.sum(tl.where(t > 0, nll, 0), axis=0))

    if NEED_GRAD:
        slope = -tl.full([], factor, wide) / ((p + smooth) * z)
        if BALANCE:
            background, foreground = tl.load(totals_ptr), tl.load(totals_ptr + 1)
            least = tl.minimum(background, foreground)  # 0: there is but one kind, and its weight is 1
            own = tl.where(t == 0, background, foreground)
            slope *= tl.where(least > 0, least.to(wide) / tl.maximum(own, 1).to(wide), 1)
        x_ptr = cam_ptr + b * k * n
        grad_ptr += b * k * n
        for c in range(k):
            g = tl.zeros([BLOCK], wide)
            if tl.load(present_ptr + c) > 0:
                x = tl.load(x_ptr + i, mask=counts, other=0).to(wide)
                dp = tl.where(t == c + 1, 1.0, 0.0) - tl.where(first == c, tl.where(t == 0, 1.0, 0.0), p)
                g = tl.where(counts & (x >= 0) & (x <= 1), slope * dp, 0)
            tl.store(grad_ptr + i, narrow(g, grad_ptr.dtype.element_ty), mask=i < n)
            x_ptr += n
            grad_ptr += n


@triton.jit(do_not_specialize=["programs"])
def finish_kernel(
    sums_ptr,
    counts_ptr,
    loss_ptr,
    scale_ptr,
    programs,
    factor: tl.float64,
    BALANCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wide: tl.constexpr = loss_ptr.dtype.element_ty
    background = total(counts_ptr, programs, BLOCK)
    foreground = total(counts_ptr + programs, programs, BLOCK)
    background_sum = total(sums_ptr, programs, BLOCK)
    foreground_sum = total(sums_ptr + programs, programs, BLOCK)
    count = tl.maximum(background + foreground, 1)
    loss = (background_sum + foreground_sum) / count.to(wide)
    if BALANCE:
        least = tl.minimum(background, foreground)
        if least > 0:
            count = 2 * least
            loss = (background_sum / background.to(wide) + foreground_sum / foreground.to(wide)) / 2
    tl.store(loss_ptr, loss)
    tl.store(scale_ptr, 1 / (count.to(wide) * tl.full([], factor, wide)))


def target_nll(
    cam: Tensor, target: Tensor, label: Tensor, ignore: int, smooth: float, balance: bool, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, t = cam.contiguous(), target.contiguous()
    b, k, h, w = x.shape
    present = (label.contiguous() > 0).view(torch.uint8)
    blocks = triton.cdiv(h * w, BLOCK)
    programs = b * blocks
    sums = x.new_empty((2, programs), dtype=torch.promote_types(x.dtype, torch.float32))  # background, foreground
    counts = x.new_empty((2, programs), dtype=torch.int32)
    loss, scale = sums.new_empty(()), sums.new_empty(())
    grad = torch.empty_like(x) if need_grad else x.new_empty(0)
    factor = min(1.0, smooth / STEEP)
    classes = triton.next_power_of_2(k)
    count_kernel[(programs,)](t, present, counts, k, h * w, blocks, IGNORE=ignore, CLASSES=classes, BLOCK=BLOCK)
    totals = counts.new_empty(2, dtype=torch.int64)
    if balance:
        totals_kernel[(1,)](counts, totals, programs, BLOCK=SUM_BLOCK)
    target_nll_kernel[(programs,)](
        x,
        t,
        present,
        totals,
        sums,
        grad,
        k,
        h * w,
        blocks,
        smooth,
        factor,
        IGNORE=ignore,
        BALANCE=balance,
        NEED_GRAD=need_grad,
        CLASSES=classes,
        BLOCK=BLOCK,
    )
    finish_kernel[(1,)](sums, counts, loss, scale, programs, factor, BALANCE=balance, BLOCK=SUM_BLOCK)
    return loss, grad, scale
