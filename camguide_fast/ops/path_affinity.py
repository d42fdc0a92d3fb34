"""The loss of AffinityNet: edges should part cells of different labels and no others."""

import torch
from torch import Tensor

from ..reference.path_affinity import path_affinity_count
from ..reference.path_affinity import path_affinity_loss as reference_loss
from . import _checks as check
from ._register import define_loss, needs_grad
from ._value_range import value_range
from .target_nll import INTEGERS

define_loss(
    "path_affinity_loss(Tensor edge, Tensor target, int radius, int ignore, bool need_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference_loss,
    count=path_affinity_count,
    parts=3,
)


def path_affinity_loss(edge: Tensor, target: Tensor, radius: int = 10, ignore: int = 255) -> tuple[Tensor, Tensor]:
    r"""Loss of an edge map by the labels of pairs of cells, after IRN (Ahn et al., 2019).

    Two cells i, j with 0 < |i - j| < radius have the affinity $a = 1 - \max edge$, the maximum over the cells whose
    distance to the segment from i to j is < 1, both ends included (as in `affinity_random_walk`). A pair of the same
    label costs $-\log(a + \epsilon)$, one of different labels $-\log(1 + \epsilon - a)$, $\epsilon$ = 1e-5. With the
    means over all pairs of the batch, of background, of one class, and of different labels,
    $L = (L_{bg}/2 + L_{fg}/2 + L_{neg})/2$.

    A list of all paths would take gigabytes; memory is a few maps like edge, whatever the radius.

    Args:
        edge: probability that a cell is a boundary, [B, 1, h, w] in [0, 1], fp32/fp16/bf16/fp64.
        target: [B, h, w], an integer dtype: 0 background, k + 1 class k, `ignore` unknown.
        radius: >= 1, in cells; 10 gives 152 pairs a cell, 1 none. May exceed the map.
        ignore: the label of cells whose pairs do not count.

    Returns:
        The loss, a scalar, and without gradient its parts [3]: the means of background, class and different labels.
        fp32 (fp64 for fp64). A part without a pair is 0, and counts as such.

    Gradient: to edge, once (a second one raises), at the cell of the maximum: of equal ones the first, row by row from
    the upper cell of the pair.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or radius; on CPU also an edge outside [0, 1] (NaN passes and
            makes the loss NaN) or a negative target (on CUDA it counts as ignored).
    """
    check.tensor("edge", edge, 4)
    b, _, h, w = edge.shape
    check.shape("edge", edge, (b, 1, h, w), "one map an image")
    check.tensor("target", target, 3, INTEGERS)
    check.shape("target", target, (b, h, w), "edge [B, 1, h, w]")
    check.same_device(edge=edge, target=target)
    radius = check.integer("radius", radius, 1)
    if check.values(edge):
        low, high = value_range(edge)
        if low < 0 or high > 1 or (low != low and ((edge < 0) | (edge > 1)).any()):
            raise ValueError(f"edge must hold probabilities in [0, 1], got [{low:g}, {high:g}]")
        low, high = value_range(target, ignore)
        if low < 0 or high >= 2**31:
            raise ValueError(f"target must hold labels from 0 or ignore={ignore}, got {low if low < 0 else high}")
    loss, _, _, parts = torch.ops.camguide_fast.path_affinity_loss(edge, target, radius, ignore, needs_grad(edge))
    return loss, parts
