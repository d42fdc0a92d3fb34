"""Twin of ops/scale_gradient.py."""

from torch import Tensor


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    # .to: a 0-dim factor does not widen a half-precision product, and 1/N itself is lost in fp16
    grad.copy_(grad.to(factor.dtype) * factor)
