"""grad *= factor, multiplied in factor's dtype and rounded once; and how a loss rounds the gradient that it stores.

Bytes: the gradient twice. Where the dtypes agree torch's own `mul_` does just that; it refuses a 0-dim tensor of
another dtype as anything but a number of grad's own, hence the kernel for halves.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x in the dtype of a stored gradient. fp16 ends at 65504: beyond it an infinity would outlast every loss scale."""
    if dtype == tl.float16:
        x = tl.where(x > 65504, 65504, tl.where(x < -65504, -65504, x))  # a NaN stays one
    return x.to(dtype)


@triton.jit
def scale_gradient_kernel(grad_ptr, factor_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(factor_ptr)
    grad = tl.load(grad_ptr + i, mask=i < n, other=0).to(factor.dtype) * factor
    tl.store(grad_ptr + i, grad.to(grad_ptr.dtype.element_ty), mask=i < n)


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    if grad.dtype == factor.dtype:
        grad.mul_(factor)
    elif grad.numel():
        scale_gradient_kernel[(triton.cdiv(grad.numel(), BLOCK),)](grad, factor, grad.numel(), BLOCK=BLOCK)
