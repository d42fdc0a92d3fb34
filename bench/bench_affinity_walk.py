"""affinity_random_walk: the peers are the twin and, where its matrix is small enough, the power of the dense matrix."""

import torch
from _check import close
from _harness import compare
from _inputs import class_maps

from camguide_fast import ops, reference
from camguide_fast.reference.affinity_walk import transition_planes

RADIUS, BETA, LOG2_STEPS = 5, 10.0, 8


def eager(cam, edge):
    return reference.affinity_random_walk(cam, edge, RADIUS, BETA, LOG2_STEPS)


def dense(cam, edge):
    """The matrix of all pairs of cells, squared eight times, as PSA and IRN do it."""
    _, k, h, w = cam.shape
    planes = transition_planes(edge, RADIUS, BETA)
    t = edge.new_zeros(h, w, h, w)  # from i to j
    y, x = torch.meshgrid(torch.arange(h, device=t.device), torch.arange(w, device=t.device), indexing="ij")
    for (dy, dx), plane in planes.items():
        i_y, i_x = y + dy, x + dx
        inside = (i_y >= 0) & (i_y < h) & (i_x >= 0) & (i_x < w)
        t[i_y[inside], i_x[inside], y[inside], x[inside]] = plane[0, 0][inside]
    t = t.view(h * w, h * w)
    t.diagonal().copy_(1 - t.sum(0))
    for _ in range(LOG2_STEPS):
        t = t @ t
    return ((cam * (1 - edge)).view(k, h * w) @ t).view_as(cam)


def at(height, width, peers):
    return compare(
        "affinity_random_walk",
        f"1x3x{height}x{width}, radius {RADIUS}, {2**LOG2_STEPS} steps",
        inputs=lambda: (
            class_maps(1, 3, height, width).relu(),
            (3 * class_maps(1, 1, height, width) - 3).sigmoid(),
        ),
        oracle=eager,
        check=close(1e-4),
        rows={"ours": ops.affinity_random_walk, "eager": eager, **peers},
    )


bench_affinity_walk = at(32, 40, {"dense power": dense})
bench_affinity_walk_large = at(94, 125, {})  # dense would take 26 TFLOP and gigabytes
