"""All that stage 3 computes on the refined maps z1 of one batch, targets given: normalisation, local and edge
consistency, the likelihoods of two targets."""

from _check import close
from _harness import FUSED_LOSS, compare
from _inputs import class_maps, label_map, photographs, tags
from _rows import Row, compiled

from camguide_fast import ops, reference

SIZE = (128, 128)
OPS = ("cam_normalize", "edge_support", "edge_consistency_loss", "local_consistency_loss", "target_nll")


def ours(z1, image, label, walk, crf):
    cam = ops.cam_normalize(z1)
    edge = ops.edge_consistency_loss(cam, ops.edge_support(image, SIZE), label)
    local = ops.local_consistency_loss(cam)
    return edge + local + ops.target_nll(cam, walk, label) + ops.target_nll(cam, crf, label)


def eager(z1, image, label, walk, crf):
    cam = reference.cam_normalize(z1, 1e-5)[0]
    support = reference.edge_support(image, SIZE)
    edge = reference.edge_consistency_loss(cam, support, label, 0.1, 0.05, 2.0, 0.35, 2.0, None)
    local = reference.local_consistency_loss(cam, 7, 1e-5, None)
    walk, crf = (reference.target_nll(cam, target, label, 255, 0.01, False) for target in (walk, crf))
    return edge + local + walk + crf


def oracle(z1, image, *others):
    return eager(z1, image.double() / 255, *others)


def inputs():
    walk = label_map(32, 20, *SIZE)
    return class_maps(32, 20, *SIZE), photographs(32, 512), tags(32, 20), walk, walk.roll(3, 2)


bench_losses = compare(
    OPS,
    "32x20x128x128, images 32x3x512x512",
    inputs=inputs,
    grad=0,
    oracle=oracle,
    check=close(1e-4, outliers=1e-5),  # the gradient jumps at thresholds and ties
    rows={"ours": Row(ours, note=FUSED_LOSS), "eager": eager, "compiled": compiled(eager)},
)
