"""label_closing: the peers are the twin and cv2, with the merging of its classes and without."""

import cv2
import numpy as np
import torch
from _check import equal
from _harness import Row
from _inputs import label_map

from camguide_fast import ops, reference

CLASSES, SIDE = (1, 2, 3), 15
ELEMENT = np.ones((SIDE, SIDE), np.uint8)


def closings(planes):
    return [cv2.morphologyEx(plane, cv2.MORPH_CLOSE, ELEMENT) for plane in planes]


def merge(closed, labels):
    out = labels.copy()
    for label, plane in reversed(list(zip(CLASSES, closed, strict=True))):  # the smallest label is written last
        out[(plane > 0) & (labels == 0)] = label
    return out


def opencv(labels):
    return merge(closings(planes_of(labels)), labels)


def planes_of(labels):
    return [(labels == label).astype(np.uint8) for label in CLASSES]


def ours(labels):
    return ops.label_closing(labels, SIDE)


def eager(labels):
    return reference.label_closing(labels, SIDE, 0, 255)


def bench_label_closing(bench):
    labels = label_map(1, len(CLASSES), 512, 512).to(torch.uint8)
    array = labels[0].numpy()
    compare(
        bench,
        labels,
        {
            "eager": eager,
            "cv2": Row(opencv, inputs=(array,), result=lambda out: torch.from_numpy(out)[None], on_cpu=True),
            "cv2, closings alone": Row(
                closings,
                inputs=(planes_of(array),),
                result=lambda closed: torch.from_numpy(merge(closed, array))[None],
                on_cpu=True,
                note="classes split before the clock starts, merged after it has stopped",
            ),
        },
    )


def bench_label_closing_batch(bench):
    labels = label_map(32, len(CLASSES), 512, 512).to(torch.uint8)
    image_by_image = Row(
        lambda batch: [opencv(one) for one in batch],
        inputs=(list(labels.numpy()),),
        result=lambda out: torch.from_numpy(np.array(out)),
        on_cpu=True,
    )
    compare(bench, labels, {"cv2": image_by_image})


def compare(bench, labels, peers):
    bench.compare(
        "label_closing",
        f"{len(labels)}x512x512, {len(CLASSES)} classes, {SIDE}x{SIDE}",
        inputs=(labels,),
        oracle=eager,
        check=equal(),
        rows={"ours": ours, **peers},
    )
