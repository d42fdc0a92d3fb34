"""Twin of ops/affinity_walk.py: the walk of PSA and IRN as a stencil, step by step."""

import functools

import torch
from torch import Tensor

from ._common import widen


@functools.cache
def half_plane_offsets(radius: int) -> list[tuple[int, int]]:
    """(dy, dx) with 0 < |(dy, dx)| < radius, one of each pair of opposites: 34 at radius 5."""
    steps = range(1 - radius, radius)
    return [(y, x) for y in steps for x in steps if (y > 0 or (y == 0 and x > 0)) and y * y + x * x < radius * radius]


@functools.cache
def segment_cells(dy: int, dx: int) -> list[tuple[int, int]]:
    """Cells whose distance to the segment (0, 0)-(dy, dx) is < 1, ends included; dy >= 0.

    They lie in the box of the ends: a cell beyond it is at least 1 away from every point of the segment. Inside the
    box the distance to the segment is that to its line.
    """
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def transition_planes(edge: Tensor, radius: int, beta: float) -> dict[tuple[int, int], Tensor]:
    """{(dy, dx): [B, 1, h, w]}: T_ij at each cell j for its neighbour i = j + (dy, dx), 0 for i outside the image."""
    h, w = edge.shape[2:]
    planes = {}
    for dy, dx in half_plane_offsets(min(radius, h + w)):  # none is longer
        if dy >= h or abs(dx) >= w:
            continue
        left, right = max(-dx, 0), w - max(dx, 0)  # columns of the cells j for which j + (dy, dx) is in the image
        highest = edge[:, :, : h - dy, left:right]
        for y, x in segment_cells(dy, dx):
            highest = torch.maximum(highest, edge[:, :, y : h - dy + y, left + x : right + x])
        affinity = (1 - highest) ** beta
        forth, back = torch.zeros_like(edge), torch.zeros_like(edge)
        forth[:, :, : h - dy, left:right] = affinity
        back[:, :, dy:, left + dx : right + dx] = affinity  # A is symmetric
        planes[dy, dx], planes[-dy, -dx] = forth, back
    column_sum = 1 + sum(planes.values())  # A_jj = 1
    return {offset: plane / column_sum for offset, plane in planes.items()}


def affinity_random_walk(cam: Tensor, edge: Tensor, radius: int, beta: float, log2_steps: int) -> Tensor:
    x, edge = widen(cam), edge.to(widen(cam).dtype)
    h, w = x.shape[2:]
    planes = transition_planes(edge, radius, beta)
    x = x * (1 - edge)
    r = min(radius, h + w) - 1
    for _ in range(2**log2_steps):
        # (x T)_j = sum_i x_i T_ij = x_j + sum_i (x_i - x_j) T_ij, since columns sum to 1. Over hundreds of steps the
        # roundings of the first form add up; the second even keeps a constant map exactly.
        padded, gain = torch.nn.functional.pad(x, (r, r, r, r)), torch.zeros_like(x)
        for (dy, dx), plane in planes.items():
            gain.addcmul_(plane, padded[:, :, r + dy : r + dy + h, r + dx : r + dx + w] - x)
        x = x + gain
    return x.to(cam.dtype)
