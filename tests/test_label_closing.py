"""label_closing: each class as cv2.MORPH_CLOSE, background filled alone, the smallest label first."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast import ops, reference

DTYPES = [torch.uint8, torch.int32, torch.int64]


def expected(labels, k, background=0, ignore=255):
    """The rule, with cv2 for one class at a time; numpy [H, W]."""
    out = labels.copy()
    for label in sorted(set(np.unique(labels).tolist()) - {background, ignore}, reverse=True):
        closed = cv2.morphologyEx((labels == label).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((k, k), np.uint8))
        out[(closed > 0) & (labels == background)] = label
    return out


def assert_equals_cv2(labels, k, background=0, ignore=255):
    """The op, which the C++ kernel serves where it is built, and the twin."""
    for row in (ops.label_closing, reference.label_closing):
        out = row(torch.from_numpy(labels), k, background, ignore)
        for ours, given in zip(out.numpy(), labels, strict=True):
            np.testing.assert_array_equal(ours, expected(given, k, background, ignore))


@pytest.mark.parametrize("k", [1, 3, 15])
def test_equals_cv2_on_masks(voc, k):
    for path in sorted((voc / "SegmentationClass").glob("*.png"))[:60:10]:
        assert_equals_cv2(np.array(Image.open(path))[None], k)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 9, 3), (2, 23, 31)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 5, 15, 51])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_equals_cv2_on_random_maps(shape, k, dtype):
    rng = np.random.default_rng(k)
    assert_equals_cv2(rng.choice([0, 0, 0, 0, 0, 1, 4, 254, 255], shape).astype(dtype), k)
    assert_equals_cv2(rng.choice([0, 2, 3, 3, 3, 3, 7, 9], shape).astype(dtype), k, background=3, ignore=7)


@pytest.mark.parametrize("shape", [(9, 63), (9, 64), (40, 65), (3, 127), (90, 130), (130, 200)], ids=str)
@pytest.mark.parametrize("k", [3, 15, 63, 65, 129, 1001])
def test_equals_cv2_across_words(shape, k):
    """Blobs small and large, anywhere among words of 64 pixels."""
    noise = cv2.GaussianBlur(np.random.default_rng(k).normal(size=shape), (0, 0), 2)
    assert_equals_cv2(np.digitize(noise, [0.1, 0.2, 0.25]).astype(np.uint8)[None], k)


def test_background_and_labels_of_any_value():
    labels = torch.tensor([[[7, -(2**40), 7, 300, 7, 300, 2**40, 7, 2**40]]])
    out = ops.label_closing(labels, 3, background=7, ignore=-(2**40))
    assert out.tolist() == [[[7, -(2**40), 7, 300, 300, 300, 2**40, 2**40, 2**40]]]
    narrow = torch.tensor([[[1, 44, 1, 0, 1]]], dtype=torch.uint8)
    for row in (ops.label_closing, reference.label_closing):
        assert torch.equal(row(narrow, 3, 300, 255), narrow)  # no pixel is background: none is written


def test_same_with_any_number_of_threads():
    labels, threads = torch.randint(0, 5, (5, 40, 70)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.label_closing(labels, 5)
        torch.set_num_threads(2)
        assert torch.equal(ops.label_closing(labels, 5), alone)
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_strides_and_input_untouched(dtype):
    labels = torch.randint(0, 4, (2, 13, 17)).to(dtype)
    before = labels.clone()
    out = ops.label_closing(labels, 5)
    assert out.dtype == dtype and torch.equal(labels, before)
    assert torch.equal(ops.label_closing(labels.transpose(1, 2).contiguous().transpose(1, 2), 5), out)
    identity = ops.label_closing(labels, 1)
    assert torch.equal(identity, labels) and identity.data_ptr() != labels.data_ptr()


def test_opcheck_and_compile():
    labels = torch.randint(0, 3, (2, 9, 8))
    torch.library.opcheck(torch.ops.camguide_fast.label_closing.default, (labels, 3, 0, 255))
    compiled = torch.compile(lambda x: ops.label_closing(x, 3) + 1, fullgraph=True)
    assert torch.equal(compiled(labels), ops.label_closing(labels, 3) + 1)


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
def test_errors(change, message):
    arguments = dict(labels=torch.zeros(1, 4, 4, dtype=torch.int64)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.label_closing(**arguments)
