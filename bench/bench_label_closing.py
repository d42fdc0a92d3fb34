"""Morphology of label maps: the peers are the twin and cv2, with the merging of its classes and without."""

import cv2
import numpy as np
import torch
from _check import equal
from _harness import compare
from _inputs import label_map
from _rows import Row

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


def of(operation, images):
    peers, ours = Peers(operation), getattr(ops, f"label_{operation}")

    def merged(images):  # of (planes, labels)
        return torch.from_numpy(np.stack([peers.merge(planes, labels) for planes, labels in images]))

    return compare(
        "label_closing" if operation == "closing" else "label_morphology",
        f"{operation}, {images}x512x512, {len(CLASSES)} classes, {SIDE}x{SIDE}",
        inputs=lambda: (label_map(images, len(CLASSES), 512, 512).to(torch.uint8),),
        bytes=lambda labels: {"forward": 2 * labels.nbytes},
        oracle=peers.eager,
        check=equal(),
        rows={
            "ours": lambda x: ours(x, SIDE),
            "eager": peers.eager,
            "cv2": Row(
                lambda images: [peers.opencv(one) for one in images],
                inputs=lambda labels: (list(labels.numpy()),),
                result=lambda out: torch.from_numpy(np.stack(out)),
                on_cpu=True,
            ),
            f"cv2, {operation}s alone": Row(
                lambda images: [(peers.alone(planes), labels) for planes, labels in images],
                inputs=lambda labels: ([(planes_of(one), one) for one in labels.numpy()],),
                result=merged,
                on_cpu=True,
                note="classes split before the clock starts, merged after it has stopped",
            ),
        },
    )


bench_label_closing = of("closing", 1)
bench_label_closing_batch = of("closing", 32)
bench_label_opening = of("opening", 1)
bench_label_erosion = of("erosion", 1)
bench_label_dilation = of("dilation", 1)
