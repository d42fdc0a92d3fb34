"""threshold_labels as in a step of stage 3: the peers are the twin and torch.compile of it."""

import torch
from _check import equal
from _harness import compare
from _inputs import class_maps, tags
from _rows import compiled

from camguide_fast import ops, reference


def of(batch, k, maps, side):
    def inputs():
        cam = reference.cam_normalize(class_maps(batch, k, maps, maps), 1e-5)[0]
        valid = torch.ones(batch, 1, side, side, dtype=torch.bool)
        valid[:, :, :, -side // 8 :] = False
        return cam, tags(batch, k), torch.linspace(0.1, 0.45, batch), valid

    def ours(cam, label, tau, valid):
        return ops.threshold_labels(cam, label, tau.to(cam), (side, side), valid)

    def eager(cam, label, tau, valid):
        return reference.threshold_labels(cam, label, tau.to(cam), [side, side], valid)

    def compulsory(cam, label, tau, valid):
        return {"forward": int(label.sum()) * maps * maps * cam.itemsize + 2 * valid.numel()}

    return compare(
        "threshold_labels",
        f"{batch}x{k}x{maps}x{maps} to {side}x{side}",
        inputs=inputs,
        bytes=compulsory,
        oracle=eager,
        check=equal(0.9999),  # two maps that are equally large, a map next to its threshold
        rows={"ours": ours, "eager": eager, "compiled": compiled(eager)},
    )


bench_threshold_labels = of(32, 20, 128, 512)
bench_threshold_labels_small = of(8, 5, 40, 320)
