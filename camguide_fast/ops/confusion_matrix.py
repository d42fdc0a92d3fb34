"""Counts of (target, prediction) pairs, from which IoU and mIoU follow."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define

_LABELS = (torch.uint8, torch.int32, torch.int64)


def _fake(pred, target, num_classes, ignore):
    return pred.new_empty((num_classes, num_classes), dtype=torch.int64), pred.new_empty((), dtype=torch.int64)


define(
    "confusion_matrix(Tensor pred, Tensor target, int num_classes, int ignore) -> (Tensor, Tensor)",
    reference=reference.confusion_matrix,
    fake=_fake,
)


def confusion_matrix(pred: Tensor, target: Tensor, num_classes: int, ignore: int = 255) -> Tensor:
    """Confusion matrix of two label maps: entry [t, p] counts the pixels of target t predicted as p.

    With `m` the result, IoU per class is `m.diag() / (m.sum(0) + m.sum(1) - m.diag())`.

    Args:
        pred: labels in [0, num_classes), any shape (not empty), uint8/int32/int64.
        target: labels in [0, num_classes) or `ignore`, same shape as pred, uint8/int32/int64.
        num_classes: C >= 1, background included.
        ignore: pixels with this target are left out, whatever was predicted there.

    Returns:
        int64 [C, C] on the inputs' device; rows are target. Exact, the same on every device. No gradient.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or num_classes; on CPU also labels outside [0, C).
            On CUDA, where values are not looked at, such pixels are left out.
    """
    check.tensor("pred", pred, getattr(pred, "ndim", 0), _LABELS)
    check.tensor("target", target, pred.ndim, _LABELS)
    check.shape("target", target, pred.shape, "pred")
    check.same_device(pred=pred, target=target)
    num_classes = check.integer("num_classes", num_classes, 1)
    ignore = check.integer("ignore", ignore, -(2**63), bits=64)
    table, outside = torch.ops.camguide_fast.confusion_matrix(pred, target, num_classes, ignore)
    if check.values(outside) and outside > 0:
        raise ValueError(
            f"pred or target holds labels outside [0, {num_classes}) at {outside} pixels (ignore is "
            f"{ignore}; pred is in [{pred.min()}, {pred.max()}], target in [{target.min()}, {target.max()}])"
        )
    return table
