"""dense_crf: the peers are the twin and pydensecrf, both at the settings that CRFs on labels are run with."""

import pytest
import torch
from _check import close
from _harness import Row
from _inputs import class_maps, photographs
from support.crf import pydensecrf

from camguide_fast import ops, reference


def eager(prob, image):
    return reference.dense_crf(prob, image, 5, [3.0, 3.0, 3.0], [50.0, 50.0, 5.0, 5.0, 5.0, 10.0], None)


@pytest.mark.parametrize("labels", [3, 21])
def bench_dense_crf(bench, labels):
    prob, image = (2 * class_maps(1, labels, 512, 512)).softmax(1), photographs(1, 512)
    bench.compare(
        "dense_crf",
        f"1x{labels}x512x512, 5 iterations",
        inputs=(prob, image),
        oracle=eager,
        check=close(1e-4, outliers=1e-4),
        rows={
            "ours": ops.dense_crf,
            "eager": eager,
            "pydensecrf": Row(
                pydensecrf,
                inputs=(-torch.log(prob[0].clamp(1e-5, 1)), image[0]),
                result=lambda q: q[None],
                check=close(1e-3),
                on_cpu=True,
                needs="pydensecrf.densecrf",
            ),
        },
    )
