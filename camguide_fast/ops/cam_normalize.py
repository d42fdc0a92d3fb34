"""Class activation maps scaled to [0, 1) by their own maximum (Eq. 1-3)."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define, library, once


def _fake(features, eps):
    wide = torch.promote_types(features.dtype, torch.float32)
    return _fake_like(features), features.new_empty(features.shape[:2], dtype=wide)


def _fake_like(features):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


_KERNEL = ("cam_normalize", "triton")
define(
    "cam_normalize(Tensor features, float eps) -> (Tensor, Tensor)",
    reference=reference.cam_normalize,
    fake=_fake,
    kernel=_KERNEL,
)
define(
    "cam_normalize_backward(Tensor grad, Tensor features, Tensor peak, float eps) -> Tensor",
    reference=reference.cam_normalize_backward,
    fake=lambda grad, features, peak, eps: _fake_like(features),
    kernel=_KERNEL,
)


def _save(ctx, inputs, output):
    features, ctx.eps = inputs
    _, peak = output
    ctx.mark_non_differentiable(peak)
    ctx.save_for_backward(features, peak)


def _backward(ctx, grad, _):
    features, peak = ctx.saved_tensors
    backward = torch.ops.camguide_fast.cam_normalize_backward
    return once("cam_normalize", lambda: backward(grad, features, peak, ctx.eps), grad, features), None


torch.library.register_autograd("camguide_fast::cam_normalize", _backward, setup_context=_save, lib=library)


def cam_normalize(features: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Normalised class activation maps, Eq. 1-3: $relu(f - \epsilon) / (\max_{hw} relu(f) + \epsilon)$.

    Args:
        features: raw class maps [B, K, H, W], fp32/fp16/bf16/fp64.
        eps: > 0, subtracted above and added below the fraction.

    Returns:
        [B, K, H, W] like features, in [0, 1); all zeros for a class without a feature above eps. Computed in
        fp32 (fp64 for fp64). NaN or infinity in a class map makes that map's result NaN, there or everywhere.

    Gradient: to features, through the maximum too (not detached); pixels that tie for the maximum share its
    part equally, as in `torch.amax`. Saves features and one number per map. A second derivative raises.

    Raises:
        ValueError, TypeError: wrong shape, dtype or eps.
    """
    check.tensor("features", features, 4)
    eps = check.number("eps", eps, 0, strict=True)
    cam, _ = torch.ops.camguide_fast.cam_normalize(features, float(eps))
    return cam
