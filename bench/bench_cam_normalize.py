"""cam_normalize: the peers are Eq. 1-3 in PyTorch with autograd's own gradient, and torch.compile of that."""

from _check import close
from _harness import compare
from _inputs import class_maps
from _rows import Row, compiled

from camguide_fast import ops, reference


def eager(features):
    return reference.cam_normalize(features, 1e-5)[0]


bench_cam_normalize = compare(
    "cam_normalize",
    "32x20x128x128",
    inputs=lambda: (class_maps(32, 20, 128, 128),),
    grad=0,
    oracle=eager,
    check=close(1e-5),
    rows={
        "ours": ops.cam_normalize,
        "ours bf16": Row(ops.cam_normalize, lambda features: (features.bfloat16(),), check=close(2e-2, outliers=1e-3)),
        "eager": eager,
        "compiled": compiled(eager),
    },
)
