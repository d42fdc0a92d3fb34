"""Gaussian filtering in any number of dimensions on the permutohedral lattice: Adams, Baek & Davis (2010).

The lattice is part of the definition of the filter: a vertex exists where a pixel touches it, and values pass
through existing vertices alone. So positions are computed in fp32, operation by operation in one order, whatever the
dtype of the values: the same features give the same vertices and the same weights everywhere.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_KEY = 2**62
_FARTHEST = 2**20  # where fp32 still tells positions between two vertices apart
_TOO_SMALL = (
    "gaussian/bilateral: a sigma is too small for the size or the colours of the image: its lattice is too fine"
)


class Lattice(NamedTuple):
    """Where N pixels lie among M vertices: D = d + 1 each in d dimensions. Row M of the vertex values is zero."""

    vertices: Tensor  # int32 [N, D]: the vertices around a pixel
    weights: Tensor  # [N, D]: its barycentric weights / sqrt(L 1)
    pixels: Tensor  # int32 [N * D]: the pixels around each vertex in turn, ascending
    pixel_weights: Tensor  # [N * D]: their weights
    starts: Tensor  # int32 [M + 2]: where each vertex begins in `pixels`
    neighbours: Tensor  # int32 [D, 2, M + 1]: next and previous vertex along each axis, M where there is none


def build(features: Tensor, dtype: torch.dtype) -> Lattice:  # [N, d] fp32
    """The lattice of `features`, symmetrically normalised: `blur` is D^-1/2 L D^-1/2 with D = diag(L 1)."""
    count, d = features.shape
    # pydensecrf takes four pixels at a time and fills up the last four with zero features: their vertices exist too.
    filled = features if count % 4 == 0 else torch.cat([features, features.new_zeros(1, d)])
    corner, rank, residual = _simplex(filled)
    lattice = _index(corner, rank, _barycentric(residual, rank)[:count].to(dtype))
    scale = 1 / torch.sqrt(blur(lattice, lattice.weights.new_ones(count, 1)) + 1e-20)  # [N, 1]
    pixel_weights = lattice.pixel_weights * scale[:, 0][lattice.pixels]
    return lattice._replace(weights=lattice.weights * scale, pixel_weights=pixel_weights)


def blur(lattice: Lattice, values: Tensor) -> Tensor:  # [N, L] -> [N, L]
    """Splat, blur with [.5, 1, .5] along the axes 0 .. d in order, slice. Normalisation cancels a constant factor."""
    # A bag is a weighted sum in a fixed order, and autocast leaves it alone (it would run a matmul in half precision).
    at = torch.nn.functional.embedding_bag(
        lattice.pixels,
        values,
        lattice.starts,
        mode="sum",
        per_sample_weights=lattice.pixel_weights,
        include_last_offset=True,
    )  # [M + 1, L]
    for ahead, behind in lattice.neighbours:
        at = at + 0.5 * (at.index_select(0, ahead) + at.index_select(0, behind))
    return torch.nn.functional.embedding_bag(lattice.vertices, at, mode="sum", per_sample_weights=lattice.weights)


def _simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest vertex of remainder 0, ranks of the coordinates' distances to it, these / (d + 1); each [N, d + 1]."""
    d = features.shape[1]
    up = features.new_tensor(math.sqrt(2 / 3) * (d + 1)).item()  # rounded to fp32, as the scales below
    total, elevated = torch.zeros_like(features[:, 0]), [torch.zeros_like(features[:, 0])] * (d + 1)
    for j in range(d, 0, -1):  # y = E f, p. 5
        scaled = features[:, j - 1] * features.new_tensor(up / math.sqrt(j * (j + 1)))
        elevated[j] = total - j * scaled
        total = total + scaled
    elevated[0] = total
    position = torch.stack(elevated, 1)
    finite = torch.isfinite(position).all(1, keepdim=True)
    position = torch.where(finite, position, 0)
    if position.abs().max() > _FARTHEST:
        raise ValueError(_TOO_SMALL)
    nearest = (position * features.new_tensor(1 / (d + 1))).round()  # ties to even
    corner, off_plane = nearest * (d + 1), nearest.sum(1, keepdim=True).to(torch.int64)
    distance = position - corner
    rank = off_plane.repeat(1, d + 1)
    for i in range(d):
        below = distance[:, i, None] < distance[:, i + 1 :]
        rank[:, i] += below.sum(1)
        rank[:, i + 1 :] += ~below
    wrap = (d + 1) * ((rank < 0).to(torch.int64) - (rank > d).to(torch.int64))  # back onto the plane sum = 0
    corner, rank = corner + wrap, rank + wrap
    residual = torch.where(finite, (position - corner) * features.new_tensor(1 / (d + 1)), torch.nan)
    return corner.to(torch.int64), rank, residual


def _barycentric(residual: Tensor, rank: Tensor) -> Tensor:  # [N, d+1], p. 10
    falling = torch.empty_like(residual).scatter_(1, rank, residual).flip(1)
    first = falling[:, :1] + (1 - falling[:, -1:])
    return torch.cat([first, falling[:, 1:] - falling[:, :-1]], 1)


def _index(corner: Tensor, rank: Tensor, weights: Tensor) -> Lattice:
    """Numbers the vertices. `weights` [N, D] may have fewer rows than `corner`: those beyond make vertices, no more.

    A vertex is an integer, the mixed-radix number of its first d coordinates (they sum to 0), so that a step to a
    neighbour adds a constant.
    """
    (count, corners), d = weights.shape, weights.shape[1] - 1
    low, high = corner[:, :d].aminmax(dim=0)
    low = low - 3 * corners  # room for a simplex and a step
    sizes = (high - low + 3 * corners + 1).tolist()
    if math.prod(sizes) > _LARGEST_KEY:
        raise ValueError(_TOO_SMALL)
    stride = corner.new_tensor([math.prod(sizes[i + 1 :]) for i in range(d)])
    place = torch.arange(corners, device=corner.device)
    remainder = place[:, None]
    canonical = torch.where(place <= d - remainder, remainder, remainder - corners)  # [remainder, rank]
    base = ((corner[:, :d] - low) * stride).sum(1, keepdim=True)
    keys = torch.stack([(row[rank[:, :d]] * stride).sum(1) for row in canonical], 1) + base  # [>= N, D]
    ordered, incident = keys.flatten().sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    unique, number = ordered[is_first], is_first.cumsum(0) - 1
    vertices = torch.empty_like(number).scatter_(0, incident, number)[: count * corners].view(count, corners)
    real = incident < count * corners
    incident, number = incident[real], number[real]
    starts = torch.searchsorted(number, torch.arange(len(unique) + 2, device=number.device))
    pixels, pixel_weights = (incident // corners).int(), weights.flatten()[incident]
    return Lattice(vertices.int(), weights, pixels, pixel_weights, starts.int(), _neighbours(unique, stride))


def _neighbours(keys: Tensor, stride: Tensor) -> Tensor:  # sorted [M], [d] -> int32 [D, 2, M + 1]
    count, corners = len(keys), len(stride) + 1
    step = stride.sum() - torch.cat([corners * stride, stride.new_zeros(1)])  # along axis j: +1 everywhere, but -d at j
    wanted = keys + step[:, None, None] * step.new_tensor([-1, 1])[:, None]  # [D, 2, M]
    found = torch.searchsorted(keys, wanted).clamp(max=count - 1)
    found = torch.where(keys[found] == wanted, found, count)
    return torch.nn.functional.pad(found, (0, 1), value=count).int()
