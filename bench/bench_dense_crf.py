"""dense_crf: the peers are the twin and pydensecrf, both at the settings that CRFs on labels are run with."""

import torch
from _check import close
from _harness import compare
from _inputs import class_maps, photographs
from _rows import Row
from support.crf import pydensecrf

from camguide_fast import ops, reference


def eager(prob, image):
    return reference.dense_crf(prob, image, 5, [3.0, 3.0, 3.0], [50.0, 50.0, 5.0, 5.0, 5.0, 10.0], None)


PYDENSECRF = Row(
    pydensecrf,
    inputs=lambda prob, image: (-torch.log(prob[0].clamp(1e-5, 1)), image[0]),
    result=lambda q: q[None],
    check=close(1e-3),
    on_cpu=True,
    needs="pydensecrf.densecrf",
)


def of(labels):
    return compare(
        "dense_crf",
        f"1x{labels}x512x512, 5 iterations",
        inputs=lambda: ((2 * class_maps(1, labels, 512, 512)).softmax(1), photographs(1, 512)),
        oracle=eager,
        check=close(1e-4, outliers=1e-4),
        rows={"ours": ops.dense_crf, "eager": eager, "pydensecrf": PYDENSECRF},
    )


bench_dense_crf = of(3)
bench_dense_crf_21_labels = of(21)
