"""target_nll: the peers are the twin and torch.compile of it."""

from _check import close
from _harness import FUSED_LOSS, Row, compiled
from _inputs import class_maps, label_map, tags

from camguide_fast import ops, reference


def ours(cam, target, label):
    return ops.target_nll(cam, target, label)


def eager(cam, target, label):
    return reference.target_nll(cam, target, label, 255, 0.01, False)


def bench_target_nll(bench):
    cam, target, label = class_maps(32, 20, 128, 128).sigmoid(), label_map(32, 20, 128, 128), tags(32, 20)
    bench.compare(
        "target_nll",
        "32x20x128x128",
        inputs=(cam, target, label),
        grad=0,
        oracle=eager,
        check=close(1e-5),
        rows={
            "ours": Row(ours, note=FUSED_LOSS),
            "ours bf16": Row(ours, inputs=(cam.bfloat16(), target, label), check=close(2e-2, outliers=1e-3)),
            "eager": eager,
            "compiled": compiled(eager),
        },
    )
