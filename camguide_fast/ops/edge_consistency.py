"""Class edges without image edges (Eq. 30-34)."""

import torch
from torch import Tensor

from ..reference.edge_consistency import edge_consistency_count
from ..reference.edge_consistency import edge_consistency_loss as reference_loss
from . import _checks as check
from ._register import define_loss, needs_grad

define_loss(
    "edge_consistency_loss(Tensor cam, Tensor support, Tensor label, float tau, float delta, float gamma,"
    " float tau_hard, float lambda_hard, Tensor? valid, bool need_grad) -> (Tensor, Tensor, Tensor)",
    reference=reference_loss,
    count=edge_consistency_count,
    kernel=("edge_consistency", "triton"),
)


def edge_consistency_loss(
    cam: Tensor,
    support: Tensor,
    label: Tensor,
    tau: float = 0.1,
    delta: float = 0.05,
    gamma: float = 2.0,
    tau_hard: float = 0.35,
    lambda_hard: float = 2.0,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Punishes edges of present classes' CAMs where the image has none, Eq. 30-34.

    $E = M / \max_{hw} M$ with M the Scharr norm of the CAM blurred by a 5x5 Gaussian of sigma 1.5, border replicated;
    $u = \mathrm{relu}(E - (S + \delta)) \, 1[S < \tau] \, y$ with S the support;
    $N = \sum y \, 1[S < \tau]$, at least 1;
    $L = \frac{1}{N} \sum u^\gamma + \lambda_{hard} \frac{1}{N} \sum u \, 1[E > \tau_{hard}]$.

    Args:
        cam: class maps [B, K, h, w] >= 0, fp32/fp16/bf16/fp64. Maps of absent classes are never read.
        support: [B, 1, h, w] in [0, 1], from `edge_support(image, (h, w))`.
        label: [B, K], bool, int or float, > 0 means present.
        tau: the image has an edge where the support is >= tau.
        delta: margin >= 0 by which a CAM edge may exceed the support.
        gamma: exponent >= 1 of the focal term.
        tau_hard: a CAM edge > tau_hard also enters the hard term.
        lambda_hard: weight >= 0 of the hard term.
        valid: bool [B, 1, h, w]. Pixels outside it influence nothing (values there may be anything, NaN too): a pixel
            counts, in N and in the maximum of M as well, if all that the filters see there (7x7, clipped) is valid.

    Returns:
        fp32 scalar (fp64 for fp64). 0, with zero gradient, if no pixel counts, no class is present, or all maps are
        flat.

    Gradient: to cam, once (a second one raises); the maximum of M is detached (at least 1e-12), and M has gradient 0
    where it is 0.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or number; a support that requires grad (it gets none).
    """
    check.tensor("cam", cam, 4)
    b, k, h, w = cam.shape
    check.tensor("support", support, 4)
    check.shape("support", support, (b, 1, h, w), "cam [B, K, h, w]")
    check.label("label", label, b, k)
    check.valid(valid, b, h, w)
    check.same_device(cam=cam, support=support, label=label, valid=valid)
    tau = check.number("tau", tau, 0)
    delta = check.number("delta", delta, 0)
    gamma = check.number("gamma", gamma, 1)
    tau_hard = check.number("tau_hard", tau_hard, 0)
    lambda_hard = check.number("lambda_hard", lambda_hard, 0)
    if support.requires_grad:
        raise ValueError(
            "support requires grad, but edge_consistency_loss has no gradient to it; pass support.detach()"
        )
    numbers = [float(x) for x in (tau, delta, gamma, tau_hard, lambda_hard)]
    return torch.ops.camguide_fast.edge_consistency_loss(cam, support, label, *numbers, valid, needs_grad(cam))[0]
