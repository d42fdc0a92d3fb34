"""scale_gradient, the backward of the losses: the peers are the twin and torch.compile of it."""

import torch
from _check import close
from _harness import compiled
from _inputs import class_maps

from camguide_fast import reference
from camguide_fast.ops.scale_gradient import scale_gradient


def bench_scale_gradient(bench):
    bench.compare(
        "scale_gradient",
        "32x20x128x128",
        inputs=(class_maps(32, 20, 128, 128), torch.tensor(0.3)),
        oracle=reference.scale_gradient,
        check=close(1e-6),
        rows={
            "ours": scale_gradient,
            "eager": reference.scale_gradient,
            "compiled": compiled(reference.scale_gradient),
        },
    )
