"""Edge-aware smoothing of class maps by an image (Eq. 19)."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define, library


def _fake(z, guide, radius, eps, adjoint):
    return torch.empty_like(z, memory_format=torch.contiguous_format)


define(
    "guided_filter(Tensor z, Tensor guide, int radius, float eps, bool adjoint) -> Tensor",
    reference=reference.guided_filter,
    fake=_fake,
    kernel=("guided_filter", "cuda"),
)


def _save(ctx, inputs, output):
    _, guide, ctx.radius, ctx.eps, ctx.adjoint = inputs
    ctx.save_for_backward(guide)


def _backward(ctx, grad):
    # GF = D^-1 S with D the pixels per window and S symmetric, so its adjoint is S D^-1: the same kernel serves both
    # ways.
    (guide,) = ctx.saved_tensors
    dz = torch.ops.camguide_fast.guided_filter(grad, guide, ctx.radius, ctx.eps, not ctx.adjoint)
    return dz, None, None, None, None


torch.library.register_autograd("camguide_fast::guided_filter", _backward, setup_context=_save, lib=library)


def guided_filter(z: Tensor, guide: Tensor, radius: int = 4, eps: float = 1e-2) -> Tensor:
    r"""Guided filter of class maps with a colour guide: $g = GF(z_0, I_\downarrow)$, Eq. 19.

    He, Sun & Tang (2013), Eq. 14-16, with windows clipped at the border.

    Args:
        z: class maps [B, K, H, W], fp32/fp16/bf16/fp64.
        guide: RGB image [B, 3, H, W] on the same grid, uint8 0-255 or float in [0, 1].
        radius: r >= 1; the window is (2r+1) x (2r+1), clipped at the image border and divided by its own pixel
            count. May exceed the image. (Table III's "radius kernel size 4" is read as r = 4.)
        eps: regulariser in squared guide units of [0, 1], from 1e-6 on (fp64: 1e-12) to 1e30. Not given in the paper.

    Returns:
        [B, K, H, W] like z. Accumulated in fp32 (fp64 for fp64). Of maps in [0, 1] over photographs, grey ones
        too, within 1e-2 of fp64 for an eps of 1e-6, within 1e-5 for the default.

    Gradient: to z only, exactly `N * GF(g / N)` with N the pixels of each window; the guide alone is saved.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device, radius or eps; a guide that requires grad (its gradient
            does not exist here); on CPU a float guide that is not finite or leaves [0, 1] by more than 0.5.
    """
    check.tensor("z", z, 4)
    check.image("guide", guide)
    check.shape("guide", guide, (z.shape[0], 3, *z.shape[2:]), "z [B, K, H, W]")
    check.same_device(z=z, guide=guide)
    radius = check.integer("radius", radius, 1)
    eps = check.number("eps", eps, 0, strict=True)
    least = 1e-12 if z.dtype == torch.float64 else 1e-6  # below, what is left of the rounding decides
    if not least <= eps <= 1e30:
        more = "" if eps > 1 or z.dtype == torch.float64 else " (z.double() goes down to 1e-12)"
        raise ValueError(
            f"eps must be in [{least:g}, 1e+30] for z in {str(z.dtype).removeprefix('torch.')}{more}, got {eps:g}"
        )
    if guide.requires_grad:
        raise ValueError("guide requires grad, but guided_filter has no gradient to its guide; pass guide.detach()")
    check.image_values("guide", guide)
    return torch.ops.camguide_fast.guided_filter(z, guide, radius, float(eps), False)
