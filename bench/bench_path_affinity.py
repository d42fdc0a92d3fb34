"""path_affinity_loss: the peer is the twin, which makes its gradient offset by offset; autograd over a list of all
paths, as IRN has it, would take gigabytes."""

from _check import close
from _harness import FUSED_LOSS, compare
from _inputs import class_maps, label_map
from _rows import Row

from camguide_fast import ops, reference

RADIUS, IGNORE = 10, 255


def ours(edge, target):
    return ops.path_affinity_loss(edge, target, RADIUS, IGNORE)[0]


def eager(edge, target):
    return reference.path_affinity_loss(edge, target, RADIUS, IGNORE)[0]


def inputs():
    edge, target = class_maps(16, 1, 56, 56).mul(2).sub(1).sigmoid(), label_map(16, 3, 56, 56)
    target[class_maps(16, 1, 56, 56)[:, 0].abs() < 0.1] = IGNORE
    return edge, target


bench_path_affinity = compare(
    "path_affinity_loss",
    f"16x1x56x56, radius {RADIUS}",
    inputs=inputs,
    grad=0,
    oracle=eager,
    check=close(3e-5),
    rows={
        "ours": Row(ours, note=FUSED_LOSS),
        "ours bf16": Row(ours, lambda edge, target: (edge.bfloat16(), target), check=close(5e-2, outliers=1e-2)),
        "eager": eager,
    },
)
