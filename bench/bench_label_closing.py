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


def bench_label_closing(bench):
    labels = label_map(1, len(CLASSES), 512, 512).to(torch.uint8)
    array = labels[0].numpy()
    bench.compare(
        "label_closing",
        f"1x512x512, {len(CLASSES)} classes, {SIDE}x{SIDE}",
        inputs=(labels,),
        oracle=lambda labels: reference.label_closing(labels, SIDE, 0, 255),
        check=equal(),
        rows={
            "ours": lambda labels: ops.label_closing(labels, SIDE),
            "eager": lambda labels: reference.label_closing(labels, SIDE, 0, 255),
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
    bench.compare(
        "label_closing",
        f"32x512x512, {len(CLASSES)} classes, {SIDE}x{SIDE}",
        inputs=(labels,),
        oracle=lambda labels: reference.label_closing(labels, SIDE, 0, 255),
        check=equal(),
        rows={
            "ours": lambda labels: ops.label_closing(labels, SIDE),
            "cv2": Row(
                lambda batch: [opencv(one) for one in batch],
                inputs=(list(labels.numpy()),),
                result=lambda out: torch.from_numpy(np.array(out)),
                on_cpu=True,
            ),
        },
    )
