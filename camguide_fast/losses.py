"""The losses of CamGuide as modules. The fused ones only store the options of their op in `camguide_fast.ops`.

The soft-margin classification loss is `torch.nn.MultiLabelSoftMarginLoss`.
"""

import torch
from torch import Tensor, nn

from . import ops


class LocalConsistencyLoss(nn.Module):
    """`camguide_fast.ops.local_consistency_loss` (Eq. 35-39) with its options stored."""

    def __init__(self, window: int = 7, eps: float = 1e-5):
        super().__init__()
        self.window = window
        self.eps = eps

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """features [B, K, h, w] >= 0, valid bool [B, 1, h, w] -> fp32 scalar with gradient to features."""
        return ops.local_consistency_loss(features, self.window, self.eps, valid)

    def extra_repr(self) -> str:
        return f"window={self.window}, eps={self.eps}"


class EdgeConsistencyLoss(nn.Module):
    """`camguide_fast.ops.edge_consistency_loss` (Eq. 30-34) with its options stored.

    Example:
        ``EdgeConsistencyLoss()(cam, ops.edge_support(image, cam.shape[-2:]), label)``
    """

    def __init__(
        self,
        tau: float = 0.1,
        delta: float = 0.05,
        gamma: float = 2.0,
        tau_hard: float = 0.35,
        lambda_hard: float = 2.0,
    ):
        super().__init__()
        self.tau = tau
        self.delta = delta
        self.gamma = gamma
        self.tau_hard = tau_hard
        self.lambda_hard = lambda_hard

    def forward(self, cam: Tensor, support: Tensor, label: Tensor, valid: Tensor | None = None) -> Tensor:
        """cam [B, K, h, w] >= 0, support [B, 1, h, w] in [0, 1], label [B, K], valid bool [B, 1, h, w] -> fp32 scalar
        with gradient to cam."""
        return ops.edge_consistency_loss(
            cam, support, label, self.tau, self.delta, self.gamma, self.tau_hard, self.lambda_hard, valid
        )

    def extra_repr(self) -> str:
        return (
            f"tau={self.tau}, delta={self.delta}, gamma={self.gamma}, "
            f"tau_hard={self.tau_hard}, lambda_hard={self.lambda_hard}"
        )


class TargetNLL(nn.Module):
    """`camguide_fast.ops.target_nll` (Eq. 27) with its options stored."""

    def __init__(self, ignore: int = 255, smooth: float = 0.01, balance: bool = False):
        super().__init__()
        self.ignore = ignore
        self.smooth = smooth
        self.balance = balance

    def forward(self, cam: Tensor, target: Tensor, label: Tensor) -> Tensor:
        """cam [B, K, h, w] in [0, 1], target integer [B, h, w] (0 background, k + 1 class k), label [B, K] -> fp32
        scalar with gradient to cam."""
        return ops.target_nll(cam, target, label, self.ignore, self.smooth, self.balance)

    def extra_repr(self) -> str:
        return f"ignore={self.ignore}, smooth={self.smooth}, balance={self.balance}"


class MultiLabelHingeLoss(nn.Module):
    r"""Each present class's logit should exceed each absent one's by 1, Eq. 23.

    $L = \frac{1}{B} \sum_b \frac{1}{K} \sum_{i \text{ present}, j \text{ absent}} \max(0, 1 - (x_{b,i} - x_{b,j}))$.

    It is `torch.nn.MultiLabelMarginLoss` for multi-hot labels; that module wants lists of class indices instead and
    reads a multi-hot row as such a list without complaint.

    PAPER: an image without a present or without an absent class has no pair, and a single class never has one; Eq. 23
    would teach nothing there. Such an image contributes its soft margin, as `torch.nn.MultiLabelSoftMarginLoss`.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits [B, K], any float; label [B, K], > 0 means present -> fp32 scalar (fp64 for fp64), gradient to
        logits."""
        if logits.ndim != 2 or logits.shape != label.shape:
            raise ValueError(
                f"logits and label must both be [B, K], got {tuple(logits.shape)} and {tuple(label.shape)}"
            )
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        present = label > 0
        pair = present[:, :, None] & ~present[:, None]  # [B, K present, K absent]
        hinge = (1 - (x[:, :, None] - x[:, None])).relu()
        margin = torch.where(pair, hinge, 0).sum((1, 2))  # [B]
        soft = nn.functional.softplus(torch.where(present, -x, x)).sum(1)
        return torch.where(pair.flatten(1).any(1), margin, soft).sum() / logits.numel()


class MapRegularization(nn.Module):
    r"""The student's raw class maps stay near the teacher's: $\mathrm{mean}|F_S - F_T| / \mathrm{mean}|F_T|$.

    PAPER: Eq. 24-25 print the norm alone; `raw=True` is that, as a mean. Raw maps have no scale of their own, and at
    the usual one the term outweighs the classification loss twenty to one; divided by the batch's mean of |F_T| it is
    about 1 or less.
    """

    def __init__(self, raw: bool = False):
        super().__init__()
        self.raw = raw

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """student, teacher [B, K, h, w], any float and sign; valid bool [B, 1, h, w]: pixels that count -> fp32 scalar
        (fp64 for fp64) with gradient to student alone (the teacher is detached); 0 if no pixel counts."""
        if student.ndim != 4 or student.shape != teacher.shape:
            raise ValueError(
                f"student and teacher must both be [B, K, h, w], got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        b, k, h, w = student.shape
        if valid is not None and (valid.dtype != torch.bool or valid.shape != (b, 1, h, w)):
            raise ValueError(f"valid must be bool and {(b, 1, h, w)}, got {valid.dtype} {tuple(valid.shape)}")
        dtype = torch.promote_types(student.dtype, torch.float32)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        if valid is None:
            distance, size = (student - teacher).abs().mean(), teacher.abs().mean()
        else:
            n = (k * valid.sum()).clamp(min=1)
            distance = torch.where(valid, (student - teacher).abs(), 0).sum() / n
            size = torch.where(valid, teacher.abs(), 0).sum() / n
        return distance if self.raw else distance / size.clamp(min=1e-12)

    def extra_repr(self) -> str:
        return f"raw={self.raw}"


class PathAffinityLoss(nn.Module):
    """`camguide_fast.ops.path_affinity_loss`, the loss of AffinityNet, with its options stored."""

    def __init__(self, radius: int = 10, ignore: int = 255):
        super().__init__()
        self.radius = radius
        self.ignore = ignore

    def forward(self, edge: Tensor, target: Tensor) -> dict[str, Tensor]:
        """edge [B, 1, h, w] in [0, 1], target integer [B, h, w] (0 background, k + 1 class k) -> fp32 scalars {"loss"}
        with gradient to edge, and without {"bg", "fg", "neg"}, the means that it is made of."""
        loss, parts = ops.path_affinity_loss(edge, target, self.radius, self.ignore)
        return {"loss": loss, **dict(zip(("bg", "fg", "neg"), parts.unbind(), strict=True))}

    def extra_repr(self) -> str:
        return f"radius={self.radius}, ignore={self.ignore}"
