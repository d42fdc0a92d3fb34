"""Twin of ops/superpixel_walk.py: Eq. 13-16 on the 4-neighbour graph of superpixels, as sorted neighbour
lists (CSR).

Sums run in a fixed order: pixels in raster order, in fp64 (a superpixel may be the whole image), and
neighbours in ascending order.
"""

import torch
from torch import Tensor

from ..rules.edge_slots import edge_slots
from ._common import unit_image, widen
from ._lab import lab


def superpixel_graph(
    segments: Tensor, image: Tensor, sigma_color: float, squared: bool, num_segments: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> counts [B, N], offsets [B, N + 1], neighbours [B, E], transition [B, E]; `exact`: E is what occurs, else what
    may."""
    batch, height, width = segments.shape
    colours = lab(unit_image(image))
    counts = segments.new_zeros((batch, num_segments))
    offsets = segments.new_zeros((batch, num_segments + 1))
    neighbours = segments.new_zeros((batch, edge_slots(height, width, num_segments)))
    transition = colours.new_zeros(neighbours.shape)
    for i in range(batch):
        counts[i] = torch.bincount(segments[i].flatten(), minlength=num_segments)
        mean = _means(colours[i], segments[i], counts[i])  # [N, 3]
        node, neighbour, degree = _edges(segments[i].to(torch.int64), num_segments)
        offsets[i, 1:] = degree.cumsum(0)
        neighbours[i, : len(neighbour)] = neighbour
        transition[i, : len(neighbour)] = _transition(mean, node, neighbour, degree, sigma_color, squared)
    if exact:
        edges = int(offsets[:, -1].max())
        neighbours, transition = neighbours[:, :edges].contiguous(), transition[:, :edges].contiguous()
    return counts, offsets, neighbours, transition


def _edges(segments: Tensor, num_segments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Directed edges between 4-neighbours of different label, ascending by (node, neighbour); degrees."""
    a = torch.cat([segments[:, :-1].flatten(), segments[:-1].flatten()])
    b = torch.cat([segments[:, 1:].flatten(), segments[1:].flatten()])
    differ = a != b
    a, b = a[differ], b[differ]
    edge = torch.unique(torch.cat([a * num_segments + b, b * num_segments + a]))
    node, neighbour = edge // num_segments, edge % num_segments
    return node, neighbour, torch.bincount(node, minlength=num_segments)


def _transition(
    mean: Tensor, node: Tensor, neighbour: Tensor, degree: Tensor, sigma_color: float, squared: bool
) -> Tensor:
    """Eq. 14-15. The largest exponent of a row cancels; without it no row underflows to 0 / 0."""
    norm = torch.linalg.vector_norm(mean[node] - mean[neighbour], dim=1)
    exponent = -(norm.square() if squared else norm) / (2 * sigma_color**2)
    top = torch.segment_reduce(exponent, "max", lengths=degree, unsafe=True)
    weight = (exponent - top[node]).exp()  # Eq. 14
    return weight / torch.segment_reduce(weight, "sum", lengths=degree, unsafe=True)[node]  # Eq. 15


def superpixel_random_walk(
    target: Tensor,
    segments: Tensor,
    counts: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    transition: Tensor,
    iterations: int,
) -> Tensor:
    """[B, K, H, W] and a graph -> [B, K, H, W]"""
    out = torch.empty_like(target, memory_format=torch.contiguous_format)
    for i, one in enumerate(widen(target)):
        u = _means(one, segments[i], counts[i])  # [N, K], Eq. 13
        degree = offsets[i].diff()
        edges = int(offsets[i, -1])
        neighbour, p = neighbours[i, :edges], transition[i, :edges, None].to(u.dtype)
        alone = degree[:, None] == 0
        for _ in range(iterations):  # Eq. 16
            stepped = torch.segment_reduce(p * u[neighbour], "sum", lengths=degree, unsafe=True)
            u = torch.where(alone, u, stepped)
        out[i] = u.T[:, segments[i]].to(out.dtype)
    return out


def _means(values: Tensor, segments: Tensor, counts: Tensor) -> Tensor:
    """Mean over each superpixel, [C, H, W] -> [N, C]; 0 where it has no pixel."""
    order = torch.argsort(segments.flatten(), stable=True)
    pixels = values.flatten(1).T[order].to(torch.float64)
    total = torch.segment_reduce(pixels, "sum", lengths=counts.to(torch.int64), unsafe=True)
    return (total / counts.clamp(min=1)[:, None]).to(values.dtype)
