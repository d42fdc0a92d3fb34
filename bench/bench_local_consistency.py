"""local_consistency_loss: the peers are the twin and torch.compile of it."""

from _check import close
from _harness import FUSED_LOSS, compare
from _inputs import class_maps
from _rows import Row, compiled

from camguide_fast import ops, reference


def ours(features):
    return ops.local_consistency_loss(features)


def eager(features):
    return reference.local_consistency_loss(features, 7, 1e-5, None)


bench_local_consistency = compare(
    "local_consistency_loss",
    "32x20x128x128, window 7",
    inputs=lambda: (class_maps(32, 20, 128, 128).relu(),),
    grad=0,
    oracle=eager,
    check=close(1e-5, outliers=1e-5),  # at a tie of two classes the gradient changes sides
    rows={
        "ours": Row(ours, note=FUSED_LOSS),
        "ours bf16": Row(ours, lambda features: (features.bfloat16(),), check=close(2e-2, outliers=1e-2)),
        "eager": eager,
        "compiled": compiled(eager),
    },
)
