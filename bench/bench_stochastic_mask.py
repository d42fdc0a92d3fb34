"""stochastic_mask at the image's resolution: the peers are the twin and torch.compile of it."""

import torch
from _check import equal
from _harness import compare
from _inputs import class_maps, tags
from _rows import compiled

from camguide_fast import ops, reference

LOW, HIGH = 0.1, 0.45


def ours(cam, label):
    return ops.stochastic_mask(cam, label, LOW, HIGH, torch.Generator().manual_seed(0))


def eager(cam, label):
    tau = LOW + (HIGH - LOW) * torch.rand(*cam.shape[:2], generator=torch.Generator().manual_seed(0))
    return reference.stochastic_mask(cam, label, tau.to(cam.device))


bench_stochastic_mask = compare(
    "stochastic_mask",
    "16x20x512x512",
    inputs=lambda: (class_maps(16, 20, 512, 512).sigmoid(), tags(16, 20)),
    bytes=lambda cam, label: {"forward": int(label.sum()) * 512 * 512 * cam.itemsize + 16 * 512 * 512},
    oracle=eager,
    check=equal(0.99999),  # a cam next to its threshold
    rows={"ours": ours, "eager": eager, "compiled": compiled(eager)},
)
