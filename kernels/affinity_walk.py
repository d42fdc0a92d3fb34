"""Launches csrc/cuda/affinity_walk.cu, where the formula stands."""

import functools

import torch
from torch import Tensor

from . import _cuda

MOST_CLASSES = 4  # of a block: what registers hold
TILE, THREADS = (2, 32), 256  # cells of a block
BLOCKS = 2  # of a multiprocessor at least, as the kernel asks for in __launch_bounds__
MOST_LAUNCHES = 4  # of walks in one launch each; more maps take their steps together, a launch a step


def affinity_random_walk(cam: Tensor, edge: Tensor, radius: int, beta: float, log2_steps: int) -> Tensor:
    # [B, K, h, w], [B, 1, h, w] -> [B, K, h, w]
    cam, edge = cam.contiguous(), edge.contiguous()
    b, k, h, w = cam.shape
    wide = torch.promote_types(cam.dtype, torch.float32)
    offsets = _offsets(radius, h, w)
    reach_y, reach_x = min(radius, h) - 1, min(radius, w) - 1
    parts = -(-k // MOST_CLASSES)
    classes = -(-k // parts)
    padded = (h + 2 * reach_y, w + 2 * reach_x)
    weights = cam.new_empty((b, max(len(offsets), 1), *padded), dtype=wide)
    inverse = cam.new_empty((b, *padded), dtype=wide)
    y0, y1, velocity, total = (cam.new_empty((b, parts * classes, *padded), dtype=wide) for _ in range(4))
    out = torch.empty_like(cam)
    coefficients = _coefficients(log2_steps, wide)
    defines = {
        "CAM_TYPE": _cuda.TYPES[cam.dtype],
        "EDGE_TYPE": _cuda.TYPES[edge.dtype],
        "OFFSETS": ",".join(f"{{{dy},{dx}}}" for dy, dx in offsets or [(0, 0)]),
        "COUNT": len(offsets),
        "REACH_Y": reach_y,
        "REACH_X": reach_x,
        "CLASSES": classes,
        "COEFFICIENTS": ",".join(
            map(repr, coefficients)
        ),  # not a tensor: a captured launch can copy none from the host
    }

    def launch(kernel: str, blocks: int, args: tuple, cooperative: bool = False) -> None:
        _cuda.launch("affinity_walk", kernel, blocks, THREADS, args, defines=defines, cooperative=cooperative)

    if offsets:
        launch("affinities", -(-weights.numel() // THREADS), (edge, weights, b, h, w, float(beta)))
    maps = (y0, y1, velocity, total)
    launch("start", -(-inverse.numel() // THREADS), (cam, edge, weights, inverse, *maps, b, k, h, w))

    steps, tiles = len(coefficients), -(-h // TILE[0]) * -(-w // TILE[1])
    at_once = _cuda.resident_blocks(BLOCKS) // tiles  # maps whose blocks run together
    together = at_once > 0 and -(-b * parts // at_once) <= MOST_LAUNCHES
    counters = torch.zeros(MOST_LAUNCHES, 1, dtype=torch.int32, device=cam.device)

    def walk(first_map: int, count: int, counter: Tensor, first: int, last: int) -> None:
        args = (*maps, inverse, weights, out, counter, k, h, w, first_map, first, last)
        launch("walk", count * tiles, args, cooperative=last > first + 1)

    if together:
        for i, first_map in enumerate(range(0, b * parts, at_once)):
            walk(first_map, min(at_once, b * parts - first_map), counters[i], 0, steps)
    else:
        for step in range(steps):
            walk(0, b * parts, counters[0], step, step + 1)
    return out


def _offsets(radius: int, h: int, w: int) -> list[tuple[int, int]]:
    """(dy, dx) with 0 < |(dy, dx)| < radius, one of each pair of opposites, of cells that the image has."""
    ys, xs = range(min(radius, h)), range(1 - min(radius, w), min(radius, w))
    return [(y, x) for y in ys for x in xs if (y > 0 or x > 0) and y * y + x * x < radius * radius]


@functools.cache
def _coefficients(log2_steps: int, dtype: torch.dtype) -> list[float]:
    """C_1 .. C_m of csrc/cpu/affinity_walk.cpp: C_k = Pr(|R_n| >= k) of a walk R on the integers, n = 2^log2_steps, cut
    where what is left out is below half a unit of rounding."""
    n, parity = 2**log2_steps, int(log2_steps == 0)  # |R_n| has the parity of n
    mass, p, k = [], 1.0 + parity, parity  # at |R_n| = k, up to a factor
    while k <= n and p > 1e-30:
        mass.append(p)
        p *= (n - k) / (n + k + 2) * (1 if k else 2)
        k += 2
    tail = [0.0] * (2 * len(mass) + parity)
    total = 0.0
    for i in reversed(range(len(mass))):
        total += mass[i]
        for j in (2 * i + parity, 2 * i + parity - 1):
            if j >= 0:
                tail[j] = total
    shares = [t / total for t in tail[1:]]
    kept = next((i for i, c in enumerate(shares) if 2 * c <= torch.finfo(dtype).eps / 2), len(shares))
    return shares[:kept]
