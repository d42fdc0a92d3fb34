"""affinity_random_walk: the peers are the twin and, where its matrix is small enough, the power of the dense matrix."""

import pytest
import torch
from _check import close
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


@pytest.mark.parametrize("size", [(32, 40), (94, 125)], ids=lambda s: f"{s[0]}x{s[1]}")
def bench_affinity_walk(bench, size):
    cam, edge = class_maps(1, 3, *size).relu(), (3 * class_maps(1, 1, *size) - 3).sigmoid()
    rows = {"ours": ops.affinity_random_walk, "eager": eager}
    if size[0] * size[1] <= 2000:  # 94x125 takes 26 TFLOP and gigabytes
        rows["dense power"] = dense
    bench.compare(
        "affinity_random_walk",
        f"1x3x{size[0]}x{size[1]}, radius {RADIUS}, {2**LOG2_STEPS} steps",
        inputs=(cam, edge),
        oracle=eager,
        check=close(1e-4),
        rows=rows,
    )
