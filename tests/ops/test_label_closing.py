"""label_closing, -_opening, -_erosion, -_dilation: each class as in cv2, and what of it is written to the map."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast import ops, reference

DTYPES = [torch.uint8, torch.int32, torch.int64]
OPERATIONS = {
    "closing": cv2.MORPH_CLOSE,
    "opening": cv2.MORPH_OPEN,
    "erosion": cv2.MORPH_ERODE,
    "dilation": cv2.MORPH_DILATE,
}
operations = pytest.mark.parametrize("operation", OPERATIONS)


def public(operation):
    return getattr(ops, f"label_{operation}")


def twin(operation, labels, k, background=0, ignore=255):
    if operation == "closing":
        return reference.label_closing(labels, k, background, ignore)
    return reference.label_morphology(labels, operation, k, background, ignore)


def expected(operation, labels, k, background=0, ignore=255):
    """The rule, with cv2 for one class at a time; numpy [H, W]."""
    out = labels.copy()
    for label in sorted(set(np.unique(labels).tolist()) - {background, ignore}, reverse=True):
        own = (labels == label).astype(np.uint8)
        now = cv2.morphologyEx(own, OPERATIONS[operation], np.ones((k, k), np.uint8)) > 0
        if operation in ("closing", "dilation"):
            out[now & (labels == background)] = label
        else:
            out[(labels == label) & ~now] = background
    return out


def assert_equals_cv2(operation, labels, k, background=0, ignore=255, by_twin=True):
    """The op, which the C++ kernel serves where it is built, and the twin."""
    maps = torch.from_numpy(labels)
    rows = [public(operation)(maps, k, background, ignore)]
    rows += [twin(operation, maps, k, background, ignore)] if by_twin else []
    for out in rows:
        for ours, given in zip(out.numpy(), labels, strict=True):
            np.testing.assert_array_equal(ours, expected(operation, given, k, background, ignore))


def blobs(shape, levels, seed, sigma=2):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=shape), (0, 0), sigma)
    return np.digitize(noise, np.quantile(noise, np.linspace(0, 1, levels + 1)[1:-1]))[None]


@operations
@pytest.mark.parametrize("k", [1, 3, 15])
def test_equals_cv2_on_masks(voc, k, operation):
    for path in sorted((voc / "SegmentationClass").glob("*.png"))[:60:10]:
        assert_equals_cv2(operation, np.array(Image.open(path))[None], k)


@operations
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 9, 3), (2, 23, 31)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 5, 15, 51])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_equals_cv2_on_random_maps(shape, k, dtype, operation):
    rng = np.random.default_rng(k)
    assert_equals_cv2(operation, rng.choice([0, 0, 0, 0, 0, 1, 4, 254, 255], shape).astype(dtype), k)
    assert_equals_cv2(operation, rng.choice([0, 2, 3, 3, 3, 3, 7, 9], shape).astype(dtype), k, background=3, ignore=7)


@operations
@pytest.mark.parametrize("shape", [(9, 31), (8, 32), (40, 33), (3, 127), (90, 130), (130, 200)], ids=str)
@pytest.mark.parametrize("k", [3, 15, 17, 63, 65, 129, 1001])
def test_equals_cv2_across_tiles(shape, k, operation):
    """Blobs small and large, anywhere among tiles of 8 x 32 pixels."""
    assert_equals_cv2(operation, blobs(shape, 5, k).astype(np.uint8), k)


@operations
@pytest.mark.parametrize("height", [128, 131, 257, 520])
@pytest.mark.parametrize("k", [3, 15, 33])
def test_equals_cv2_across_strips(height, k, operation):
    """Blobs that are worked on in several strips of 128 rows and more."""
    assert_equals_cv2(operation, blobs((height, 70), 4, k, sigma=6).astype(np.int32), k, by_twin=False)


@operations
def test_more_classes_than_a_byte_counts(operation):
    labels = blobs((60, 90), 700, 0).astype(np.int64) * 1000 - 5000
    assert_equals_cv2(operation, labels, 5, background=-5000, ignore=0, by_twin=False)


def test_background_and_labels_of_any_value():
    labels = torch.tensor([[[7, -(2**40), 7, 300, 7, 300, 2**40, 7, 2**40]]])
    out = ops.label_closing(labels, 3, background=7, ignore=-(2**40))
    assert out.tolist() == [[[7, -(2**40), 7, 300, 300, 300, 2**40, 2**40, 2**40]]]
    narrow = torch.tensor([[[1, 44, 1, 0, 1]]], dtype=torch.uint8)
    for row in (ops.label_closing, reference.label_closing):
        assert torch.equal(row(narrow, 3, 300, 255), narrow)  # no pixel is background: none is written


@operations
def test_same_with_any_number_of_threads(operation):
    labels, threads = torch.randint(0, 5, (5, 300, 70)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = public(operation)(labels, 5)
        torch.set_num_threads(2)
        assert torch.equal(public(operation)(labels, 5), alone)
    finally:
        torch.set_num_threads(threads)


def test_by_hand():
    """1 0 1 closes, 1 claims before 2, no class takes what is not background, 255 belongs to no class and stays.

    The outside counts in neither step: the gap at the end of the second row closes against it."""
    rows = torch.tensor(
        [[1, 0, 1, 0, 0, 0], [2, 1, 0, 2, 1, 0], [1, 255, 1, 0, 0, 0], [1, 2, 1, 0, 0, 0], [255, 0, 255, 0, 0, 1]]
    )
    out = ops.label_closing(rows[:, None], 3)[:, 0]  # five images of one row
    assert out.tolist() == [
        [1, 1, 1, 0, 0, 0],
        [2, 1, 1, 2, 1, 1],
        [1, 255, 1, 0, 0, 0],
        [1, 2, 1, 0, 0, 0],
        [255, 0, 255, 0, 0, 1],
    ]


def test_the_others_by_hand():
    """1 claims before 2; erosion asks for a square of one label, border pixels for what the image has of it."""
    rows = torch.tensor([[1, 1, 0, 0, 2, 2, 2], [1, 0, 2, 255, 0, 0, 2], [0, 1, 1, 2, 2, 2, 255]])[:, None]
    assert ops.label_dilation(rows, 3)[:, 0].tolist() == [
        [1, 1, 1, 2, 2, 2, 2],
        [1, 1, 2, 255, 0, 2, 2],
        [1, 1, 1, 2, 2, 2, 255],
    ]
    assert ops.label_erosion(rows, 3)[:, 0].tolist() == [
        [1, 0, 0, 0, 0, 2, 2],
        [0, 0, 0, 255, 0, 0, 0],
        [0, 0, 0, 0, 2, 0, 255],
    ]
    assert ops.label_opening(rows, 3)[:, 0].tolist() == [
        [1, 1, 0, 0, 2, 2, 2],
        [0, 0, 0, 255, 0, 0, 0],
        [0, 0, 0, 2, 2, 2, 255],
    ]


@operations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_strides_and_input_untouched(dtype, operation):
    labels, op = torch.randint(0, 4, (2, 13, 17)).to(dtype), public(operation)
    before = labels.clone()
    out = op(labels, 5)
    assert out.dtype == dtype and torch.equal(labels, before)
    assert torch.equal(op(labels.transpose(1, 2).contiguous().transpose(1, 2), 5), out)
    identity = op(labels, 1)
    assert torch.equal(identity, labels) and identity.data_ptr() != labels.data_ptr()


def test_opcheck():
    labels = torch.randint(0, 3, (2, 9, 8))
    torch.library.opcheck(torch.ops.camguide_fast.label_closing.default, (labels, 3, 0, 255))
    torch.library.opcheck(torch.ops.camguide_fast.label_morphology.default, (labels, "opening", 3, 0, 255))


@operations
def test_compile(operation):
    labels, op = torch.randint(0, 3, (2, 9, 8)), public(operation)
    compiled = torch.compile(lambda x: op(x, 3) + 1, fullgraph=True)
    assert torch.equal(compiled(labels), op(labels, 3) + 1)


def test_operations_are_named():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    for row in (torch.ops.camguide_fast.label_morphology, reference.label_morphology):
        with pytest.raises((RuntimeError, ValueError), match="opening, erosion or dilation"):
            row(labels, "thinning", 3, 0, 255)


@operations
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=torch.zeros(4, 4, dtype=torch.int64)), "labels must have 3"),
        (dict(labels=torch.zeros(0, 4, 4, dtype=torch.int64)), "labels must have 3 non-empty"),
        (dict(labels=torch.zeros(1, 4, 4)), "labels must be one of"),
        (dict(kernel_size=4), "kernel_size must be odd, got 4"),
        (dict(kernel_size=0), "kernel_size must be an integer >= 1"),
        (dict(ignore=0), "background and ignore must differ"),
        (dict(background=-1, labels=torch.zeros(1, 4, 4, dtype=torch.uint8)), "background must be an integer >= 0"),
    ],
)
def test_errors(change, message, operation):
    arguments = dict(labels=torch.zeros(1, 4, 4, dtype=torch.int64)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        public(operation)(**arguments)


@pytest.mark.parametrize("operation", ["opening", "erosion"])
def test_a_background_that_is_written_must_fit(operation):
    labels = torch.ones(1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="background must be at most 255 to be written to labels, got 300"):
        public(operation)(labels, 3, background=300, ignore=0)
