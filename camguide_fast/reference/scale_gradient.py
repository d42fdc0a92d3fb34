"""Twin of ops/scale_gradient.py."""

from torch import Tensor


def scale_gradient(grad: Tensor, factor: Tensor) -> Tensor:
    # .to: a 0-dim factor does not widen a half-precision product, and 1/N itself is lost in fp16
    return (grad.to(factor.dtype) * factor).to(grad.dtype).contiguous()
