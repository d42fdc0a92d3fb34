"""Labels from class maps and a threshold, at the size of the image (Eq. 6-7)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define, needs_grad

_MOST = 254  # classes: 0 is background and 255 padding

define(
    "threshold_labels(Tensor cam, Tensor label, Tensor tau, SymInt[2] size, Tensor? valid) -> Tensor",
    reference=reference.threshold_labels,
    fake=lambda cam, label, tau, size, valid: cam.new_empty((cam.shape[0], *size), dtype=torch.uint8),
    kernel=("threshold_labels", "triton"),
)


def threshold_labels(
    cam: Tensor, label: Tensor, tau: Tensor | float, size: Sequence[int], valid: Tensor | None = None
) -> Tensor:
    r"""At each pixel the present class whose map is the largest, if it exceeds a threshold, else background, Eq. 6-7.

    The maps are interpolated bilinearly to `size` as `interpolate(cam, size, mode="bilinear")` does it
    (`align_corners=False`, no antialiasing), and nothing of that size is stored but the labels. Of classes that are
    equally large the first is taken. It is the argmax of [tau, maps of the present classes], as if the threshold were
    the map of the background.

    Args:
        cam: class maps [B, K, h, w], fp32/fp16/bf16/fp64, K <= 254; normalised (`cam_normalize`) if the threshold is a
            share of a map's maximum.
        label: [B, K], bool, int or float, > 0 means present. What maps of absent classes hold makes no difference:
            they count as 0, and thus matter where a threshold is negative.
        tau: fp32/fp16/bf16/fp64 [B], a threshold for each image, or a number for all; compared in the dtype that maps
            are interpolated in.
        size: (H, W) of the labels, larger or smaller than the maps.
        valid: bool [B, 1, H, W], False on padding; None: there is none.

    Returns:
        uint8 [B, H, W]: 0 background, k + 1 class k, 255 padding. Interpolated in fp32 (fp64 for fp64); where two
        values differ by its rounding, devices may differ. A pixel whose interpolation meets a NaN in a present class is
        background, and so is an image whose tau is NaN.

    Gradient: none. A cam or tau that requires grad raises; pass it detached.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or size; more than 254 classes; a cam or tau that requires
            grad while gradients are recorded.
    """
    check.tensor("cam", cam, 4)
    b, k = cam.shape[:2]
    if k > _MOST:
        raise ValueError(f"cam must have at most {_MOST} classes (255 marks padding), got {k}")
    check.label("label", label, b, k)
    if len(size) != 2:
        raise ValueError(f"size must be (H, W), got {tuple(size)}")
    size = [check.integer(f"size[{i}]", side, 1) for i, side in enumerate(size)]
    if isinstance(tau, Tensor):
        check.tensor("tau", tau, 1)
        check.shape("tau", tau, (b,), "cam [B, K, h, w]")
    else:
        tau = check.number("tau", tau, -float("inf"))
        tau = torch.full((b,), tau, dtype=torch.promote_types(cam.dtype, torch.float32), device=cam.device)
    if valid is not None:
        check.tensor("valid", valid, 4, (torch.bool,))
        check.shape("valid", valid, (b, 1, *size), "cam and size [B, 1, H, W]")
    check.same_device(cam=cam, label=label, tau=tau, valid=valid)
    for name, x in (("cam", cam), ("tau", tau)):
        if needs_grad(x):
            raise ValueError(f"{name} requires grad, but threshold_labels has no gradient; pass {name}.detach()")
    return torch.ops.camguide_fast.threshold_labels(cam, label, tau, list(size), valid)
