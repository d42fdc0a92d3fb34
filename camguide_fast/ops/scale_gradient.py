"""The backward of every loss whose gradient the forward kernel computed: one multiplication (see `_register`)."""

import torch
from torch import Tensor

from .. import reference
from ._register import define

define(
    "scale_gradient(Tensor grad, Tensor factor) -> Tensor",
    reference=reference.scale_gradient,
    fake=lambda grad, factor: torch.empty_like(grad, memory_format=torch.contiguous_format),
)


def scale_gradient(grad: Tensor, factor: Tensor) -> Tensor:
    """grad * factor, multiplied in the dtype of factor and returned in that of grad.

    Args:
        grad: fp32/fp16/bf16/fp64.
        factor: 0-dim, fp32 (fp64 for fp64).

    Gradient: none.
    """
    return torch.ops.camguide_fast.scale_gradient(grad, factor)
