"""Twin of ops/stochastic_mask.py: Eq. 7 with the thresholds of Eq. 6 given."""

from torch import Tensor

from ._common import widen


def stochastic_mask(cam: Tensor, label: Tensor, tau: Tensor) -> Tensor:  # [B, K, h, w], [B, K], [B, K] -> [B, 1, h, w]
    above = (widen(cam) > tau[:, :, None, None]) & (label > 0)[:, :, None, None]
    mask = above.any(1, keepdim=True)
    return mask | ~mask.any((2, 3), keepdim=True)  # an empty mask becomes all ones
