"""The backward of every loss whose gradient the forward kernel computed: one multiplication (see `_register`)."""

import torch
from torch import Tensor

from .. import reference
from ._register import define

define(
    "scale_gradient_(Tensor(a!) grad, Tensor factor) -> ()",
    reference=reference.scale_gradient_,
    fake=lambda grad, factor: None,
    kernel=("scale_gradient", "triton"),
)


def scale_gradient_(grad: Tensor, factor: Tensor) -> None:
    """grad *= factor in place, multiplied in the dtype of factor and rounded once to that of grad.

    Args:
        grad: fp32/fp16/bf16/fp64, contiguous.
        factor: 0-dim, fp32 (fp64 for fp64).

    Gradient: none.
    """
    torch.ops.camguide_fast.scale_gradient_(grad, factor)
