"""What the checks of arguments accept and say, over all ops: the range of images, integers of NumPy."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from camguide_fast import ops

IMAGE = torch.randint(0, 256, (1, 3, 24, 32), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
IMAGE[..., :2, :2] = torch.tensor([[0, 255], [255, 0]])
MAPS, TAGS = torch.rand(1, 3, 24, 32), torch.ones(1, 3)
EDGE, LABELS = torch.rand(1, 1, 24, 32), torch.randint(0, 3, (1, 24, 32))
SEGMENTS = ops.slic(IMAGE, 30)

OF_AN_IMAGE = {
    "slic": lambda image: ops.slic(image, 30),
    "superpixel_graph": lambda image: ops.superpixel_graph(SEGMENTS, image),
    "superpixel_random_walk": lambda image: ops.superpixel_random_walk(MAPS, SEGMENTS, image),
    "dense_crf": lambda image: ops.dense_crf(MAPS, image, 1),
    "dense_crf_labels": lambda image: ops.dense_crf_labels(LABELS, image, 3, iterations=1),
    "edge_support": lambda image: ops.edge_support(image, (6, 8)),
    "guided_filter": lambda image: ops.guided_filter(MAPS, image),
}
WRONG = {
    "0-255": (lambda x: x * 255, "from 0 to 255 (values of 0-255 belong into uint8, or divided by 255)"),
    "-1..1": (lambda x: x * 2 - 1, "from -1 to 1 (normalised for a network?)"),
    "normalised": (lambda x: (x - 0.45) / 0.225, "from -2 to 2.444 (normalised for a network?)"),
}


@pytest.mark.parametrize("op", OF_AN_IMAGE)
@pytest.mark.parametrize("name", WRONG)
def test_range_of_an_image(op, name):
    change, said = WRONG[name]
    with pytest.raises(ValueError) as error:
        OF_AN_IMAGE[op](change(IMAGE.float() / 255))
    argument = "guide" if op == "guided_filter" else "image"
    assert str(error.value) == f"{argument} must be in [0, 1], or uint8; got values {said}"


@pytest.mark.parametrize("op", OF_AN_IMAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_resizing_may_overshoot(op, dtype):
    """Weights of bicubic interpolation reach 1.375 in sum of absolutes, 1.89 in two dimensions: 0.45 either way."""
    checks = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]] * 2 + [[1.0, 0.0, 0.0, 1.0]] * 2]]).expand(1, 3, 4, 4)
    image = interpolate(checks, (24, 32), mode="bicubic")
    assert image.min() < -0.1 and image.max() > 1.1
    OF_AN_IMAGE[op](image.to(dtype))
    with pytest.raises(ValueError, match="must be in"):
        OF_AN_IMAGE[op](image.to(dtype) + 0.5)


@pytest.mark.parametrize("op", OF_AN_IMAGE)
def test_an_image_that_is_not_finite(op):
    image = IMAGE.float() / 255
    image[0, 0, 3, 4] = torch.inf
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        OF_AN_IMAGE[op](image)


NUMBERS = {
    "guided_filter": lambda i, f: ops.guided_filter(MAPS, IMAGE, i(3), f(0.5)),
    "slic": lambda i, f: ops.slic(IMAGE, i(30), f(10), i(3), f(0.5)),
    "max_segments": lambda i, f: torch.tensor(ops.max_segments(i(24), i(32), i(30), f(0.5))),
    "superpixel_random_walk": lambda i, f: ops.superpixel_random_walk(
        MAPS, SEGMENTS, IMAGE, f(2), i(3), num_segments=i(200)
    ),
    "labels": lambda i, f: ops.superpixel_random_walk(LABELS, SEGMENTS, IMAGE, num_labels=i(3), ignore=i(255)),
    "dense_crf": lambda i, f: ops.dense_crf(MAPS, IMAGE, i(2), (f(3), f(3)), (f(50), f(5), i(10))),
    "dense_crf_labels": lambda i, f: ops.dense_crf_labels(LABELS, IMAGE, i(3), f(0.5), i(2)),
    "crf_settings": lambda i, f: torch.tensor(ops.crf_settings("labels", f(2))["gaussian"]),
    "edge_support": lambda i, f: ops.edge_support(IMAGE, (i(6), i(8))),
    "edge_consistency_loss": lambda i, f: ops.edge_consistency_loss(MAPS, EDGE, TAGS, f(0.5), f(0.25), f(2)),
    "local_consistency_loss": lambda i, f: ops.local_consistency_loss(MAPS, i(3), f(0.5)),
    "target_nll": lambda i, f: ops.target_nll(MAPS, LABELS, TAGS, i(255), f(0.5)),
    "threshold_labels": lambda i, f: ops.threshold_labels(MAPS, TAGS, f(0.5), (i(48), i(64))),
    "label_closing": lambda i, f: ops.label_closing(LABELS, i(3), i(0), i(255)),
    "affinity_random_walk": lambda i, f: ops.affinity_random_walk(MAPS, EDGE, i(3), f(8), i(3)),
    "path_affinity_loss": lambda i, f: ops.path_affinity_loss(EDGE, LABELS, i(3), i(255))[0],
    "confusion_matrix": lambda i, f: ops.confusion_matrix(LABELS, LABELS, i(3), i(255)),
    "cam_normalize": lambda i, f: ops.cam_normalize(MAPS, f(0.5)),
}


@pytest.mark.parametrize("op", NUMBERS)
@pytest.mark.parametrize("integer, real", [(np.int64, np.float32), (np.uint8, np.float64), (np.int32, np.float16)])
def test_numbers_of_numpy(op, integer, real):
    assert torch.equal(NUMBERS[op](integer, real), NUMBERS[op](int, float))


@pytest.mark.parametrize("wrong", [np.bool_(True), np.float32(3), np.int64(0), "3"])
def test_what_is_no_integer(wrong):
    with pytest.raises(ValueError, match="radius must be an integer >= 1"):
        ops.guided_filter(MAPS, IMAGE, wrong)
