"""confusion_matrix: the peers are the twin and NumPy's bincount."""

import numpy as np
import torch
from _check import equal
from _harness import compare
from _inputs import label_map
from _rows import Row

from camguide_fast import ops, reference

CLASSES = 21


def eager(pred, target):
    return reference.confusion_matrix(pred, target, CLASSES, 255)[0]


def bincount(pred, target):
    counted = target != 255
    cells = CLASSES * target[counted].astype(np.int64) + pred[counted]
    return np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def inputs():
    target = label_map(8, CLASSES - 1, 512, 512).to(torch.uint8)
    pred = target.roll(5, 2)
    target[:, ::40] = 255
    return pred, target


bench_confusion_matrix = compare(
    "confusion_matrix",
    f"8x512x512 uint8, {CLASSES} classes",
    inputs=inputs,
    oracle=eager,
    check=equal(),
    rows={
        "ours": lambda pred, target: ops.confusion_matrix(pred, target, CLASSES),
        "eager": eager,
        "NumPy bincount": Row(bincount, lambda pred, target: (pred.numpy(), target.numpy()), on_cpu=True),
    },
)
