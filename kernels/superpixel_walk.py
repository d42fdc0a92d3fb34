"""Launches csrc/cuda/superpixel_walk.cu, where the formulas stand.

Nothing waits for the device: `num_segments` comes from the caller, and the lists of edges have their worst-case length,
unless they are wanted `exact`.
"""

import torch
from torch import Tensor

from ..rules.edge_slots import edge_slots
from . import _cuda

GROUP = 4  # maps that walk together: superpixels/steps.cuh
WARPS = 4  # of a block that has a superpixel
LABELS_AT_ONCE = 2**18  # whose bits are in shared memory, 32 KB
LARGEST_SHARED = 99 * 1024  # what a block has from sm_80 on


def superpixel_graph(
    segments: Tensor, image: Tensor, sigma_color: float, squared: bool, num_segments: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [B, H, W], [B, 3, H, W] -> [B, N], [B, N + 1], [B, E], [B, E]
    segments, image = segments.contiguous(), image.contiguous()
    (b, h, w), n = segments.shape, num_segments
    slots = edge_slots(h, w, n)
    launch = _launcher({"IMAGE_TYPE": _cuda.TYPES[image.dtype]})
    counts, degrees = (segments.new_empty((b, n)) for _ in range(2))
    offsets = segments.new_empty((b, n + 1))
    # What the lists leave free is 0: the same result every time.
    neighbours = segments.new_zeros((b, slots))
    transition = image.new_zeros((b, slots), dtype=torch.promote_types(image.dtype, torch.float32))
    means = image.new_empty((b, n, 3), dtype=torch.float64)
    bounds = _bounds(segments, n, launch)
    words = -(-min(n, LABELS_AT_ONCE) // 32)
    threads, nodes, size = 32 * WARPS, b * n, (n, h, w)
    tensors = (image, segments, bounds, counts, means, degrees)
    launch("find_nodes", nodes, threads, *tensors, *size, words, shared=4 * words)
    launch("find_offsets", b, 512, degrees, offsets, n)
    if slots:
        tensors = (segments, bounds, means, offsets, neighbours, transition)
        settings = (sigma_color, int(squared))
        launch("find_edges", nodes, threads, *tensors, *size, slots, words, *settings, shared=4 * words)
    if exact:
        edges = int(offsets[:, -1].max())
        neighbours, transition = neighbours[:, :edges].contiguous(), transition[:, :edges].contiguous()
    return counts, offsets, neighbours, transition


def superpixel_random_walk(
    target: Tensor,
    segments: Tensor,
    counts: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    transition: Tensor,
    iterations: int,
) -> Tensor:  # [B, K, H, W] and a graph -> [B, K, H, W]
    target, segments, counts = target.contiguous(), segments.contiguous(), counts.contiguous()
    graph = (offsets.contiguous(), neighbours.contiguous(), transition.contiguous())
    b, k, h, w = target.shape
    n, slots, groups = counts.shape[1], neighbours.shape[1], -(-k // GROUP)
    launch = _launcher({"TARGET_TYPE": _cuda.TYPES[target.dtype], "TRANSITION_TYPE": _cuda.TYPES[transition.dtype]})
    wide = torch.promote_types(target.dtype, torch.float32)
    u = target.new_empty((b, groups, n, GROUP), dtype=wide)
    bounds = _bounds(segments, n, launch)
    blocks = b * -(-groups // 2) * n
    launch("find_means", blocks, 32 * WARPS, target, segments, bounds, counts, u, k, n, h, w, groups)
    shared = 2 * n * GROUP * u.element_size()
    if shared <= LARGEST_SHARED:
        launch("walk_in_shared", b * groups, 512, u, *graph, n, groups, slots, iterations, shared=shared)
    else:
        following = torch.empty_like(u)
        for _ in range(iterations):
            launch("walk_one_step", -(-b * groups * n // 256), 256, u, following, *graph, b, n, groups, slots)
            u, following = following, u
    out = torch.empty_like(target)
    launch("spread", -(-b * h * w // 256), 256, u, segments, out, b, k, n, h, w, groups)
    return out


def _bounds(segments: Tensor, n: int, launch) -> Tensor:  # -> [B, N, 4]
    b, h, w = segments.shape
    bounds, blocks = segments.new_zeros((b, n, 4)), -(-h * w // 256)
    launch("find_bounds", b * blocks, 256, segments, bounds, n, h, w, blocks)
    return bounds


def _launcher(defines: _cuda.Defines):
    def launch(kernel: str, blocks: int, threads: int, *args, shared: int = 0) -> None:
        _cuda.launch("superpixel_walk", kernel, blocks, threads, args, defines=defines, shared=shared)

    return launch
