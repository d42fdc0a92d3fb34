"""Sums in two stages, always in the same order: each program of a loss writes what it summed up, and one small program
adds that. No float atomics, so the same bits every time."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def total(parts_ptr, n, BLOCK: tl.constexpr):
    """Sum of n numbers, in their own type; int32 counts in int64. A NaN goes through."""
    wide: tl.constexpr = tl.int64 if parts_ptr.dtype.element_ty == tl.int32 else parts_ptr.dtype.element_ty
    lanes = tl.zeros([BLOCK], wide)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        lanes += tl.load(parts_ptr + i, mask=i < n, other=0).to(wide)
    return tl.sum(lanes, axis=0)


@triton.jit(do_not_specialize=["n"])
def mean_kernel(sums_ptr, counts_ptr, loss_ptr, scale_ptr, n, factor: tl.float64, BLOCK: tl.constexpr):
    wide = loss_ptr.dtype.element_ty
    count = tl.maximum(total(counts_ptr, n, BLOCK), 1).to(wide)
    tl.store(loss_ptr, total(sums_ptr, n, BLOCK) / count)
    tl.store(scale_ptr, 1 / (count * tl.full([], factor, wide)))


def mean(sums: Tensor, counts: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """What the programs of a loss summed up, and over how many pixels (int32) -> (the mean, 1 / (N * factor)), N at
    least 1."""
    loss, scale = sums.new_empty(()), sums.new_empty(())
    mean_kernel[(1,)](sums, counts, loss, scale, sums.numel(), factor, BLOCK=BLOCK)
    return loss, scale
