"""scale_gradient_, the backward of the losses. Peers: the multiplication of torch, and torch.compile of the twin."""

import torch
from _check import close
from _harness import compare
from _inputs import class_maps
from _rows import compiled

from camguide_fast import reference
from camguide_fast.ops.scale_gradient import scale_gradient_


def in_place(scale):
    """Every call scales the same memory, so the factor is one: what is measured does not wander off."""

    def call(grad, factor):
        scale(grad, factor)
        return grad

    return call


bench_scale_gradient = compare(
    "scale_gradient_",
    "32x20x128x128",
    inputs=lambda: (class_maps(32, 20, 128, 128), torch.tensor(1.0)),
    oracle=in_place(reference.scale_gradient_),
    check=close(1e-6),
    rows={
        "ours": in_place(scale_gradient_),
        "eager": in_place(torch.Tensor.mul_),
        "compiled": compiled(in_place(reference.scale_gradient_)),
    },
)
