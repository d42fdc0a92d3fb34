"""Eq. 1-3, per map f [H, W] of a (b, k):

    m = max relu(f),  d = m + eps,  y = relu(f - eps) / d

and, with the upstream gradient g and T the pixels where f = m > 0:

    df = g 1[f > eps] / d  -  1[T] / |T| * sum(g relu(f - eps)) / d^2

One program per map, two passes over it each way; the second pass finds the map in the cache. Bytes moved:
forward f and y, backward f, g and df, once each. Everything between load and store is fp32 (fp64 for fp64).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def cam_normalize_fwd_kernel(f_ptr, y_ptr, peak_ptr, n, eps: tl.float64, BLOCK: tl.constexpr):
    plane = tl.program_id(0).to(tl.int64)
    f_ptr += plane * n
    y_ptr += plane * n
    wide: tl.constexpr = peak_ptr.dtype.element_ty
    eps = tl.full([], eps, wide)
    highest = tl.zeros([BLOCK], wide)  # relu: never below 0
    nan = tl.zeros([BLOCK], wide)  # tl.max passes over NaN, a sum does not
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + i, mask=i < n, other=0).to(wide)
        highest = tl.maximum(highest, f)
        nan += tl.where(f != f, f, 0)
    m = tl.max(highest, axis=0) + tl.sum(nan, axis=0)
    tl.store(peak_ptr + plane, m)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + i, mask=i < n, other=0).to(wide)
        y = tl.maximum(f - eps, 0) / (m + eps)
        y = tl.where(y > 1, 1, y)  # division on a GPU is off by an ulp or two; a NaN stays one
        tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def cam_normalize_bwd_kernel(g_ptr, f_ptr, peak_ptr, df_ptr, n, eps: tl.float64, BLOCK: tl.constexpr):
    plane = tl.program_id(0).to(tl.int64)
    g_ptr += plane * n
    f_ptr += plane * n
    df_ptr += plane * n
    wide: tl.constexpr = peak_ptr.dtype.element_ty
    eps = tl.full([], eps, wide)
    m = tl.load(peak_ptr + plane)
    top = tl.where(m > 0, m, float("inf"))  # nothing ties where no feature is positive
    products = tl.zeros([BLOCK], wide)
    ties = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + i, mask=i < n, other=0).to(wide)
        g = tl.load(g_ptr + i, mask=i < n, other=0).to(wide)
        products += g * tl.maximum(f - eps, 0)
        ties += (f == top).to(tl.int32)  # the padding is 0, so it never ties
    d = m + eps
    share = tl.sum(products, axis=0) / (d * d) / tl.maximum(tl.sum(ties, axis=0), 1).to(wide)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + i, mask=i < n, other=0).to(wide)
        g = tl.load(g_ptr + i, mask=i < n, other=0).to(wide)
        df = tl.where(f > eps, g, 0) / d - tl.where(f == top, share, 0)
        tl.store(df_ptr + i, df.to(df_ptr.dtype.element_ty), mask=i < n)


def cam_normalize(features: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # [B, K, H, W] -> the same, [B, K]
    f = features.contiguous()
    b, k, h, w = f.shape
    cam = torch.empty_like(f)
    peak = f.new_empty((b, k), dtype=torch.promote_types(f.dtype, torch.float32))
    cam_normalize_fwd_kernel[(b * k,)](f, cam, peak, h * w, eps, BLOCK=BLOCK)
    return cam, peak


def cam_normalize_backward(grad: Tensor, features: Tensor, peak: Tensor, eps: float) -> Tensor:
    g, f = grad.contiguous(), features.contiguous()
    b, k, h, w = f.shape
    df = torch.empty_like(f)
    cam_normalize_bwd_kernel[(b * k,)](g, f, peak, df, h * w, eps, BLOCK=BLOCK)
    return df
