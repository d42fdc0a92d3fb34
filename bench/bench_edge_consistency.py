"""edge_consistency_loss with the support it needs, from uint8 images: the peers are the twins and torch.compile of
them."""

from _check import close
from _harness import FUSED_LOSS, compare
from _inputs import class_maps, photographs, tags
from _rows import Row, compiled

from camguide_fast import ops, reference

SIZE = (128, 128)
DEFAULTS = (0.1, 0.05, 2.0, 0.35, 2.0, None)  # tau, delta, gamma, tau_hard, lambda_hard, valid


def ours(cam, image, label):
    return ops.edge_consistency_loss(cam, ops.edge_support(image, SIZE), label)


def eager(cam, image, label):
    return reference.edge_consistency_loss(cam, reference.edge_support(image, SIZE), label, *DEFAULTS)


def oracle(cam, image, label):
    return eager(cam, image.double() / 255, label)


def compulsory(cam, image, label):
    active = int(label.sum()) * SIZE[0] * SIZE[1] * cam.itemsize  # maps of absent classes are never read
    return {"forward": active + image.nbytes, "backward": cam.nbytes, "full": active + image.nbytes + cam.nbytes}


bench_edge_consistency = compare(
    ("edge_consistency_loss", "edge_support"),
    "32x20x128x128, images 32x3x512x512",
    inputs=lambda: (class_maps(32, 20, *SIZE).sigmoid(), photographs(32, 512), tags(32, 20)),
    grad=0,
    bytes=compulsory,
    oracle=oracle,
    check=close(1e-4, outliers=1e-5),  # at the thresholds tau and tau_hard the gradient jumps
    rows={"ours": Row(ours, note=FUSED_LOSS), "eager": eager, "compiled": compiled(eager)},
)
