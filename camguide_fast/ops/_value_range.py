"""The smallest and the largest value of a tensor: what the checks of arguments on the CPU look at."""

import torch
from torch import Tensor

from ._register import define

_NONE = torch.iinfo(torch.int64)


def _reference(x: Tensor, skip: int | None = None) -> Tensor:  # the dispatcher leaves out what is the default
    if x.is_floating_point():
        return torch.stack(x.aminmax()).to(torch.promote_types(x.dtype, torch.float32))
    kept = x if skip is None else x[x != skip]
    if not kept.numel():
        return torch.tensor([_NONE.max, _NONE.min])
    return torch.stack(kept.aminmax()).long()


def _fake(x: Tensor, skip: int | None = None) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.int64
    return x.new_empty(2, dtype=dtype)


define("value_range(Tensor x, int? skip=None) -> Tensor", reference=_reference, fake=_fake)


def value_range(x: Tensor, skip: int | None = None) -> tuple[float, float] | tuple[int, int]:
    """(smallest, largest) of x, an integer or float tensor that is not empty; of floats (NaN, NaN) if one is NaN.

    Values equal to `skip` are left out of an integer tensor; of none that is left the smallest exceeds the largest.
    """
    low, high = torch.ops.camguide_fast.value_range(x.detach(), skip)
    return low.item(), high.item()
