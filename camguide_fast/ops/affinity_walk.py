"""Class maps spread by a random walk that image edges hold back: the last step of PSA, IRN and Puzzle-CAM."""

import torch
from torch import Tensor

from .. import reference
from . import _checks as check
from ._register import define
from ._value_range import value_range

define(
    "affinity_random_walk(Tensor cam, Tensor edge, int radius, float beta, int log2_steps) -> Tensor",
    reference=reference.affinity_random_walk,
    fake=lambda cam, *_: torch.empty_like(cam, memory_format=torch.contiguous_format),
    kernel=("affinity_walk", "cuda"),
)


def affinity_random_walk(cam: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, log2_steps: int = 8) -> Tensor:
    r"""Random walk of class maps over the pixels' affinities: $(cam \cdot (1 - edge)) \, T^{2^{log2\_steps}}$.

    Two cells i, j with 0 < |i - j| < radius have the affinity $A_{ij} = (1 - \max edge)^\beta$, the maximum over the
    cells whose distance to the segment from i to j is < 1, both ends included; $A_{ii} = 1$, all others are 0.
    T is A with each column divided by its sum; neighbours outside the image are absent from it. Ahn & Kwak (2018)
    with the affinities of Ahn et al. (IRN, 2019). T is never formed: memory is a few dozen maps like edge.

    Args:
        cam: class maps [B, K, h, w], fp32/fp16/bf16/fp64; one walk serves all K.
        edge: probability that a cell is a boundary, [B, 1, h, w] in [0, 1], fp32/fp16/bf16/fp64.
        radius: >= 1, in cells; 5 gives 68 neighbours, 1 none. May exceed the image.
        beta: >= 0; higher holds the walk back more.
        log2_steps: >= 0; the walk takes 2^log2_steps steps.

    Returns:
        [B, K, h, w] like cam, as it comes: dividing by the maximum is the caller's. A constant map without edges
        stays what it is. Computed in fp32 (fp64 for an fp64 cam). No gradient: the result is detached.

    Precision: T is similar to a symmetric matrix with its spectrum in [-1, 1], so that T^n is a short Chebyshev sum
    (88 terms for 256 steps in fp32). The kernels may cut it where, in the 2-norm weighted by A's column sums, at most
    2^-24 of the map is lost (2^-53 in fp64); the rounding of hundreds of steps is some 1e-6 of the maximum.

    Raises:
        ValueError, TypeError: wrong shape, dtype, device or setting; on CPU also an edge outside [0, 1].
    """
    check.tensor("cam", cam, 4)
    check.tensor("edge", edge, 4)
    check.shape("edge", edge, (cam.shape[0], 1, *cam.shape[2:]), "cam [B, K, h, w]")
    check.same_device(cam=cam, edge=edge)
    radius = check.integer("radius", radius, 1)
    beta = check.number("beta", beta, 0)
    log2_steps = check.integer("log2_steps", log2_steps, 0)
    if check.values(edge):
        low, high = value_range(edge)
        if not (low >= 0 and high <= 1):
            raise ValueError(f"edge must hold probabilities in [0, 1], got [{low:g}, {high:g}]")
    return torch.ops.camguide_fast.affinity_random_walk(cam.detach(), edge.detach(), radius, float(beta), log2_steps)
