"""The losses of CamGuide as modules. The fused ones only store the options of their op in `camguide_fast.ops`.

The soft-margin classification loss is `torch.nn.MultiLabelSoftMarginLoss`.
"""

import torch
from torch import Tensor, nn

from . import ops
from .reference.affinity_walk import half_plane_offsets, segment_cells


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
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits [B, K], any float; label [B, K], > 0 means present -> fp32 scalar (fp64 for fp64), gradient to logits.
        An image without present or without absent classes contributes 0."""
        if logits.ndim != 2 or logits.shape != label.shape:
            raise ValueError(
                f"logits and label must both be [B, K], got {tuple(logits.shape)} and {tuple(label.shape)}"
            )
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        present = label > 0
        pair = present[:, :, None] & ~present[:, None]  # [B, K present, K absent]
        hinge = (1 - (x[:, :, None] - x[:, None])).relu()
        return torch.where(pair, hinge, 0).sum() / logits.numel()


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
    r"""Edges should part pixels of different labels and no others: the loss of IRN (Ahn et al., 2019).

    Two cells less than `radius` apart have the affinity a = 1 - max edge over the cells whose distance to the segment
    between them is < 1. A pair of the same label costs $-\log(a + \epsilon)$, one of different labels
    $-\log(1 + \epsilon - a)$, $\epsilon$ = 1e-5; pairs with a label 255 do not count. With the means over the pairs
    of background, of one class, and of different labels, $L = (L_{bg}/2 + L_{fg}/2 + L_{neg})/2$.

    A list of all paths would take gigabytes. Here an offset between two cells is a shift of whole maps, path maxima are
    taken one offset after the other, and the gradient, which goes to the cell of the maximum (the first of equals), is
    made on the way: memory is a few dozen maps like `edge`, whatever the radius.
    """

    def __init__(self, radius: int = 10):
        super().__init__()
        self.radius = radius

    def forward(self, edge: Tensor, target: Tensor) -> dict[str, Tensor]:
        """edge [B, 1, h, w] in [0, 1], target integer [B, h, w] (0 background, k + 1 class k, 255 unknown) -> {"loss",
        and without gradient "bg", "fg", "neg"}, fp32 scalars; a part without a pair is 0."""
        if edge.ndim != 4 or edge.shape[1] != 1 or target.shape != (edge.shape[0], *edge.shape[2:]):
            raise ValueError(
                f"edge must be [B, 1, h, w] and target [B, h, w], got {tuple(edge.shape)} and {tuple(target.shape)}"
            )
        loss, parts = _PathAffinity.apply(edge, target, self.radius)
        return {"loss": loss, **dict(zip(("bg", "fg", "neg"), parts.unbind(), strict=True))}

    def extra_repr(self) -> str:
        return f"radius={self.radius}"


class _PathAffinity(torch.autograd.Function):
    EPS = 1e-5
    SHARES = (0.25, 0.25, 0.5)  # of background, foreground and different labels

    @staticmethod
    def forward(ctx, edge: Tensor, target: Tensor, radius: int) -> tuple[Tensor, Tensor]:
        eps, edge = _PathAffinity.EPS, edge.detach()[:, 0]
        dtype = edge.dtype
        edge = edge.to(torch.promote_types(dtype, torch.float32))
        shifts = [_Shift(dy, dx, *edge.shape[1:]) for dy, dx in half_plane_offsets(radius)]
        shifts = [shift for shift in shifts if shift.fits]
        counts = torch.zeros(3, device=edge.device, dtype=edge.dtype)
        for shift in shifts:
            kind = _pair_kinds(*shift.ends(target))
            counts += torch.stack([(kind == value).sum() for value in range(3)])
        shares = edge.new_tensor(_PathAffinity.SHARES)
        weights = torch.cat([shares / counts.clamp(min=1), shares.new_zeros(1)])  # of a pair, by its kind
        grad, sums = torch.zeros_like(edge), torch.zeros_like(counts)
        for shift in shifts:
            kind = _pair_kinds(*shift.ends(target))
            highest, cell = shift.path_maximum(edge)
            differ = kind == _DIFFER
            right = torch.where(differ, highest, 1 - highest) + eps  # a + eps, or 1 - a + eps
            nll = -right.log()
            sums += torch.stack([torch.where(kind == value, nll, 0).sum() for value in range(3)])
            slope = torch.where(differ, -weights[kind.int()], weights[kind.int()]) / right
            shift.add_at(grad, cell, slope)
        means = sums[:3] / counts.clamp(min=1)
        loss = (means * shares).sum()
        ctx.save_for_backward(grad[:, None].to(dtype))
        ctx.mark_non_differentiable(means)
        return loss, means

    @staticmethod
    def backward(ctx, upstream: Tensor, _):
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None


_DIFFER, _UNKNOWN = 2, 3  # kinds of pairs: 0 background, 1 the same class


def _pair_kinds(here: Tensor, there: Tensor) -> Tensor:  # uint8
    kind = torch.where(here == there, (here > 0).to(torch.uint8), _DIFFER)
    return kind.masked_fill((here == 255) | (there == 255), _UNKNOWN)


class _Shift:
    """All pairs of cells (j, j + (dy, dx)) of [B, h, w] maps, and the paths between them."""

    def __init__(self, dy: int, dx: int, h: int, w: int):
        self.fits = dy < h and abs(dx) < w
        self.dy, self.dx, self.h, self.w = dy, dx, h, w
        self.cells = segment_cells(dy, dx)

    def at(self, x: Tensor, cell: tuple[int, int]) -> Tensor:  # a view: x at j + cell for each j
        (y, dx), left = cell, max(-self.dx, 0)
        right = self.w - max(self.dx, 0)
        return x[:, y : self.h - self.dy + y, left + dx : right + dx]

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.at(x, (0, 0)), self.at(x, (self.dy, self.dx))

    def path_maximum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The maximum, and the number of the first cell of the path that has it."""
        return torch.stack([self.at(x, cell) for cell in self.cells]).max(0)

    def add_at(self, total: Tensor, which: Tensor, value: Tensor) -> None:
        spread = value.new_zeros(len(self.cells), *value.shape).scatter_(0, which[None], value[None])
        for cell, part in zip(self.cells, spread, strict=True):
            self.at(total, cell).add_(part)
