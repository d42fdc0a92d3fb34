"""The teacher's mask with a random threshold, which stages 1 and 2 lay over the image (Eq. 6-8)."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define

define(
    "stochastic_mask(Tensor cam, Tensor label, Tensor tau) -> Tensor",
    reference=reference.stochastic_mask,
    fake=lambda cam, label, tau: cam.new_empty((cam.shape[0], 1, *cam.shape[2:]), dtype=torch.bool),
)


def stochastic_mask(
    cam: Tensor, label: Tensor, low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    r"""Pixels where a present class exceeds a random threshold: $\tau_{bk} \sim U(low, high)$, cam > tau, Eq. 6-7.

    PAPER: Eq. 6-8 give every class a mask of its own; here an image gets the union over its present classes, and
    all ones where the union is empty, so that Eq. 8 yields one masked image that is never blank.

    Args:
        cam: normalised class maps [B, K, h, w] in [0, 1], fp32/fp16/bf16/fp64.
        label: [B, K], bool, int or float; > 0 means present. Absent classes never show in the mask.
        low, high: 0 <= low <= high, the range of the thresholds.
        generator: draws the thresholds, on its own device: a CPU generator serves a CUDA cam too and gives the
            same thresholds there. B * K fp32 numbers are drawn whatever the labels, so its state afterwards
            depends on the shape alone. None: the global generator of cam's device (torch.compile traces only this).

    Returns:
        bool [B, 1, h, w]. No gradient.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or range.
    """
    check.tensor("cam", cam, 4)
    check.label("label", label, *cam.shape[:2])
    check.same_device(cam=cam, label=label)
    low = check.number("low", low, 0)
    high = check.number("high", high, low)
    device = cam.device if generator is None else generator.device
    tau = low + (high - low) * torch.rand(*cam.shape[:2], generator=generator, device=device)
    return torch.ops.camguide_fast.stochastic_mask(cam, label, tau.to(cam.device))
