"""Twin of ops/path_affinity.py: the loss of AffinityNet (IRN), one offset between two cells after the other."""

import torch
from torch import Tensor

from ._common import widen
from .affinity_walk import half_plane_offsets, segment_cells

EPS = 1e-5
SHARES = (0.25, 0.25, 0.5)  # of the pairs of background, of one class, and of different labels
DIFFER, UNKNOWN = 2, 3  # kinds of pairs: 0 background, 1 the same class
LARGEST = 32768  # of a stored gradient: within fp16


def path_affinity_loss(edge: Tensor, target: Tensor, radius: int, ignore: int) -> tuple[Tensor, Tensor]:
    """The loss, and without gradient the three means [3] that it is made of."""
    return _PathAffinity.apply(edge, target, radius, ignore)


def path_affinity_count(edge: Tensor, target: Tensor, radius: int, ignore: int) -> Tensor:
    """What the gradient is stored without. A cell's is at most that of all paths through it at the steepest, 1 / eps:
    so much is LARGEST."""
    weights = _weights(pair_counts(target, radius, ignore), widen(edge[:0]).dtype)
    paths = sum(len(shift.cells) for shift in _shifts(radius, *edge.shape[2:]))
    most = weights.max()
    return torch.where(most > 0, LARGEST * EPS / (most * max(paths, 1)), 1)


def pair_counts(target: Tensor, radius: int, ignore: int) -> Tensor:  # int64 [3]
    counts = torch.zeros(4, dtype=torch.int64, device=target.device)
    for shift in _shifts(radius, *target.shape[1:]):
        counts += _kinds(*shift.ends(target), ignore).flatten().bincount(minlength=4)
    return counts[:3]


class _PathAffinity(torch.autograd.Function):
    """Autograd would keep all the paths, gigabytes: the gradient, which goes to the cell of the maximum, is made on the
    way, and memory is a few dozen maps like `edge`, whatever the radius."""

    @staticmethod
    def forward(ctx, edge: Tensor, target: Tensor, radius: int, ignore: int) -> tuple[Tensor, Tensor]:
        ctx.dtype, edge = edge.dtype, widen(edge.detach())[:, 0]
        counts = pair_counts(target, radius, ignore)
        weights = torch.cat([_weights(counts, edge.dtype), edge.new_zeros(1)])  # of a pair, by its kind
        grad, sums = torch.zeros_like(edge), edge.new_zeros(3)
        for shift in _shifts(radius, *edge.shape[1:]):
            kind = _kinds(*shift.ends(target), ignore)
            highest, cell = shift.path_maximum(edge)
            right = torch.where(kind == DIFFER, highest, 1 - highest) + EPS  # a + eps, or 1 - a + eps
            nll = -right.log()
            sums += torch.stack([torch.where(kind == value, nll, 0).sum() for value in range(3)])
            shift.add_at(grad, cell, torch.where(kind == DIFFER, -weights[kind], weights[kind]) / right)
        means = sums / counts.clamp(min=1)
        ctx.save_for_backward(grad[:, None])
        ctx.mark_non_differentiable(means)
        return (means * means.new_tensor(SHARES)).sum(), means

    @staticmethod
    def backward(ctx, upstream: Tensor, _):
        (grad,) = ctx.saved_tensors
        return (grad * upstream).to(ctx.dtype), None, None, None


def _weights(counts: Tensor, dtype: torch.dtype) -> Tensor:  # [3]
    shares = torch.tensor(SHARES, dtype=dtype, device=counts.device)
    return torch.where(counts > 0, shares / counts.clamp(min=1), 0)


def _kinds(here: Tensor, there: Tensor, ignore: int) -> Tensor:  # int64
    kind = torch.where(here == there, (here > 0).long(), DIFFER)
    unknown = (here == ignore) | (there == ignore) | (here < 0) | (there < 0)
    return kind.masked_fill(unknown, UNKNOWN)


def _shifts(radius: int, h: int, w: int) -> list["_Shift"]:
    offsets = half_plane_offsets(min(radius, h + w))
    return [_Shift(dy, dx, h, w) for dy, dx in offsets if dy < h and abs(dx) < w]


class _Shift:
    """All pairs of cells (j, j + (dy, dx)) of [B, h, w] maps, and the paths between them."""

    def __init__(self, dy: int, dx: int, h: int, w: int):
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
