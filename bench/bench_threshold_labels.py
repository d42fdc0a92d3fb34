"""threshold_labels as in a step of stage 3: the peers are the twin and torch.compile of it."""

import pytest
import torch
from _check import equal
from _harness import compiled
from _inputs import class_maps, tags

from camguide_fast import ops, reference


@pytest.mark.parametrize("shape, side", [((32, 20, 128, 128), 512), ((8, 5, 40, 40), 320)], ids=str)
def bench_threshold_labels(bench, shape, side):
    cam, label = reference.cam_normalize(class_maps(*shape), 1e-5)[0], tags(*shape[:2])
    tau = torch.linspace(0.1, 0.45, shape[0])
    valid = torch.ones(shape[0], 1, side, side, dtype=torch.bool)
    valid[:, :, :, -side // 8 :] = False

    def ours(cam, label, tau, valid):
        return ops.threshold_labels(cam, label, tau.to(cam), (side, side), valid)

    def eager(cam, label, tau, valid):
        return reference.threshold_labels(cam, label, tau.to(cam), [side, side], valid)

    maps = int(label.sum()) * shape[2] * shape[3] * cam.itemsize
    bench.compare(
        "threshold_labels",
        f"{'x'.join(map(str, shape))} to {side}x{side}",
        inputs=(cam, label, tau, valid),
        bytes={"forward": maps + 2 * valid.numel()},
        oracle=eager,
        check=equal(0.9999),  # two maps that are equally large, a map next to its threshold
        rows={"ours": ours, "eager": eager, "compiled": compiled(eager)},
    )
