"""guided_filter: the peers are the twin, torch.compile of it, and OpenCV's filter, one call for an image and class."""

import cv2
import numpy as np
import torch
from _check import close
from _harness import compare
from _inputs import class_maps, photographs
from _rows import Row, compiled

from camguide_fast import ops, reference

RADIUS, EPS = 4, 1e-2


def ours(z, guide):
    return ops.guided_filter(z, guide, RADIUS, EPS)


def eager(z, guide):
    return reference.guided_filter(z, guide, RADIUS, EPS)


def image_by_image(z, guide):
    return torch.cat([eager(z[i : i + 1], guide[i : i + 1]) for i in range(len(z))])


def opencv(planes, guides):
    filters = [cv2.ximgproc.createGuidedFilter(guide, RADIUS, EPS) for guide in guides]
    return [[f.filter(plane) for plane in image] for f, image in zip(filters, planes, strict=True)]


OPENCV = Row(
    opencv,
    inputs=lambda z, guide: (list(z.numpy()), list(np.ascontiguousarray(guide.permute(0, 2, 3, 1)))),
    result=lambda planes: torch.from_numpy(np.array(planes)),
    check=close(2e-4, border=2 * RADIUS),
    gradient=False,
    on_cpu=True,
    needs="cv2.ximgproc.createGuidedFilter",
    note="reflects at the border, so it is compared from two radii inside on; no gradient",
)


def at(*shape):
    return compare(
        "guided_filter",
        f"{'x'.join(map(str, shape))}, r={RADIUS}",
        inputs=lambda: (class_maps(*shape), photographs(shape[0], shape[2]).float() / 255),
        grad=0,
        oracle=image_by_image,
        check=close(2e-4),
        rows={
            "ours": ours,
            "ours bf16": Row(ours, lambda z, guide: (z.bfloat16(), guide), check=close(2e-2)),
            "eager": eager,
            "compiled": compiled(eager),
            "OpenCV ximgproc": OPENCV,
        },
    )


bench_guided_filter = at(32, 20, 128, 128)
bench_guided_filter_small = at(16, 20, 56, 56)
bench_guided_filter_large = at(1, 21, 512, 512)
