"""target_nll: the peers are the twin and torch.compile of it."""

from _check import close
from _harness import FUSED_LOSS, compare
from _inputs import class_maps, label_map, tags
from _rows import Row, compiled

from camguide_fast import ops, reference


def ours(cam, target, label):
    return ops.target_nll(cam, target, label)


def eager(cam, target, label):
    return reference.target_nll(cam, target, label, 255, 0.01, False)


bench_target_nll = compare(
    "target_nll",
    "32x20x128x128",
    inputs=lambda: (class_maps(32, 20, 128, 128).sigmoid(), label_map(32, 20, 128, 128), tags(32, 20)),
    grad=0,
    oracle=eager,
    check=close(1e-5),
    rows={
        "ours": Row(ours, note=FUSED_LOSS),
        "ours bf16": Row(ours, lambda cam, *others: (cam.bfloat16(), *others), check=close(2e-2, outliers=1e-3)),
        "eager": eager,
        "compiled": compiled(eager),
    },
)
