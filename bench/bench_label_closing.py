"""Morphology of label maps: the peers are the twin and cv2, with the merging of its classes and without."""

import cv2
import numpy as np
import torch
from _check import equal
from _harness import Row
from _inputs import label_map

from camguide_fast import ops, reference

CLASSES, SIDE = (1, 2, 3), 15
ELEMENT = np.ones((SIDE, SIDE), np.uint8)
OPERATIONS = {
    "closing": cv2.MORPH_CLOSE,
    "opening": cv2.MORPH_OPEN,
    "erosion": cv2.MORPH_ERODE,
    "dilation": cv2.MORPH_DILATE,
}


class Peers:
    """One operation as others do it."""

    def __init__(self, operation):
        self.operation, self.grows = operation, operation in ("closing", "dilation")

    def eager(self, labels):
        if self.operation == "closing":
            return reference.label_closing(labels, SIDE, 0, 255)
        return reference.label_morphology(labels, self.operation, SIDE, 0, 255)

    def opencv(self, labels):
        return self.merge(self.alone(planes_of(labels)), labels)

    def alone(self, planes):
        return [cv2.morphologyEx(plane, OPERATIONS[self.operation], ELEMENT) for plane in planes]

    def merge(self, planes, labels):
        if not self.grows:
            return np.where(np.bitwise_or.reduce(planes), labels, 0)
        out = labels.copy()
        for label, plane in reversed(list(zip(CLASSES, planes, strict=True))):  # the smallest label is written last
            out[(plane > 0) & (labels == 0)] = label
        return out


def planes_of(labels):
    return [(labels == label).astype(np.uint8) for label in CLASSES]


def bench_label_closing(bench):
    one_image(bench, "closing")


def bench_label_opening(bench):
    one_image(bench, "opening")


def bench_label_erosion(bench):
    one_image(bench, "erosion")


def bench_label_dilation(bench):
    one_image(bench, "dilation")


def bench_label_closing_batch(bench):
    labels, peers = label_map(32, len(CLASSES), 512, 512).to(torch.uint8), Peers("closing")
    arrays = list(labels.numpy())
    rows = {
        "cv2": Row(
            lambda batch: [peers.opencv(one) for one in batch],
            inputs=(arrays,),
            result=lambda out: torch.from_numpy(np.array(out)),
            on_cpu=True,
        ),
        "cv2, closings alone": alone(
            lambda batch: [peers.alone(planes) for planes in batch],
            [planes_of(array) for array in arrays],
            lambda done: np.array([peers.merge(*pair) for pair in zip(done, arrays, strict=True)]),
        ),
    }
    compare(bench, "closing", labels, rows)


def one_image(bench, operation):
    labels, peers = label_map(1, len(CLASSES), 512, 512).to(torch.uint8), Peers(operation)
    array = labels[0].numpy()
    rows = {
        "eager": peers.eager,
        "cv2": Row(peers.opencv, inputs=(array,), result=lambda out: torch.from_numpy(out)[None], on_cpu=True),
        f"cv2, {operation}s alone": alone(peers.alone, planes_of(array), lambda done: peers.merge(done, array)[None]),
    }
    compare(bench, operation, labels, rows)


def alone(f, planes, merge):
    return Row(
        f,
        inputs=(planes,),
        result=lambda done: torch.from_numpy(merge(done)),
        on_cpu=True,
        note="classes split before the clock starts, merged after it has stopped",
    )


def compare(bench, operation, labels, peers):
    ours = getattr(ops, f"label_{operation}")
    bench.compare(
        "label_closing" if operation == "closing" else "label_morphology",
        f"{operation}, {len(labels)}x512x512, {len(CLASSES)} classes, {SIDE}x{SIDE}",
        inputs=(labels,),
        oracle=Peers(operation).eager,
        check=equal(),
        rows={"ours": lambda x: ours(x, SIDE), **peers},
    )
