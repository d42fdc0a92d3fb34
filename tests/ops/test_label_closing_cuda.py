"""label_closing on CUDA: csrc/cuda/label_closing.cu, run on the CPU by tests/cuda_host, and on a GPU where there is
one."""

from unittest import mock

import cuda_host
import cv2
import numpy as np
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import label_closing as kernels
from support.capture import captured

from camguide_fast import ops, reference

DTYPES = [torch.uint8, torch.int32, torch.int64]


def blobs(shape, dtype=torch.uint8, device="cpu"):
    """A few classes in large pieces and small ones, a fiftieth of them ignored."""
    b, h, w = shape
    noise = torch.nn.functional.avg_pool2d(torch.randn(b, 1, h + 4, w + 4, device=device), 5, 1)[:, 0]
    labels = torch.bucketize(noise, torch.tensor([0.1, 0.2, 0.25], device=device))
    labels[torch.rand(shape, device=device) < 0.02] = 255
    return labels.to(dtype)


def speckles(shape, dtype=torch.int64):
    choice = torch.tensor([0, 0, 0, 0, 1, 4, 254, 255])
    return choice[torch.randint(len(choice), shape)].to(dtype)


def by_cv2(labels, operation, k, background=0, ignore=255):
    """One class at a time: what it gains is background, and what it loses becomes that."""
    kernel = np.ones((k, k), np.uint8)
    of_cv2 = {
        "closing": lambda x: cv2.morphologyEx(x, cv2.MORPH_CLOSE, kernel),
        "opening": lambda x: cv2.morphologyEx(x, cv2.MORPH_OPEN, kernel),
        "dilation": lambda x: cv2.dilate(x, kernel),
        "erosion": lambda x: cv2.erode(x, kernel),
    }[operation]
    out = labels.clone()
    for given, to in zip(labels.numpy(), out.numpy(), strict=True):
        for label in sorted(set(given.ravel().tolist()) - {background, ignore}, reverse=True):
            changed = of_cv2((given == label).astype(np.uint8)) > 0
            to[changed & (given == background)] = label
            to[~changed & (given == label)] = background
    return out


@pytest.mark.parametrize(
    "shape, k",
    [
        ((1, 1, 1), 15),
        ((2, 5, 7), 3),
        ((3, 9, 63), 1),
        ((1, 70, 144), 15),  # four tiles, read by sixteens
        ((1, 70, 132), 9),  # by fours
        ((1, 66, 129), 5),
        ((1, 100, 30), 51),
        ((1, 40, 65), 1001),  # the element exceeds the image
        ((1, 12, 300), 65),  # shifts by a whole word
        ((1, 260, 9), 181),  # along columns, in four passes
    ],
    ids=str,
)
def test_equals_the_rows_on_cpu(shape, k):
    for labels in (blobs(shape), speckles(shape)):
        result = cuda_host.every_order(lambda labels=labels: kernels.label_closing(labels, k, 0, 255))
        assert torch.equal(result, ops.label_closing(labels, k))
        assert torch.equal(result, reference.label_closing(labels, k, 0, 255))


@pytest.mark.parametrize("operation", list(kernels.STEPS))
@pytest.mark.parametrize("shape, k", [((2, 21, 37), 3), ((1, 70, 67), 7), ((1, 19, 100), 31)], ids=str)
def test_every_operation_equals_cv2(operation, shape, k):
    for labels in (blobs(shape), speckles(shape)):
        with cuda_host.on_cpu(order=2):
            result = kernels.label_morphology(labels, operation, k, 0, 255)
        assert torch.equal(result, by_cv2(labels, operation, k))
        assert torch.equal(result, getattr(ops, f"label_{operation}")(labels, k))


@pytest.mark.parametrize("operation", list(kernels.STEPS))
def test_planes_too_large_for_shared_memory(operation, monkeypatch):
    labels = blobs((2, 70, 80))
    monkeypatch.setattr(kernels, "SHARED", 0)
    result = cuda_host.every_order(lambda: kernels.label_morphology(labels, operation, 9, 0, 255), orders=(0, 1, 2))
    assert torch.equal(result, by_cv2(labels, operation, 9))


def test_a_large_element_takes_a_workspace():
    labels = torch.zeros(1, 910, 910, dtype=torch.uint8)
    labels[:, ::300, ::300] = 3
    with cuda_host.on_cpu():
        result = kernels.label_closing(labels, 301, 0, 255)
    assert torch.equal(result, ops.label_closing(labels, 301))


@pytest.mark.parametrize("width", [16, 17, 36])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_and_strides(dtype, width):
    labels = speckles((2, 13, width), dtype)
    before, strided = labels.clone(), labels.transpose(1, 2).contiguous().transpose(1, 2)
    with cuda_host.on_cpu():
        result = kernels.label_closing(labels, 5, 0, 255)
        assert torch.equal(kernels.label_closing(strided, 5, 0, 255), result)
        buffer = torch.cat([labels.new_zeros(1), labels.flatten()])  # not aligned for reads of several
        assert torch.equal(kernels.label_closing(buffer[1:].view(labels.shape), 5, 0, 255), result)
    assert result.dtype == dtype and torch.equal(labels, before)
    assert torch.equal(result, reference.label_closing(labels, 5, 0, 255))


def test_background_and_labels_of_any_value():
    low, high = -(2**63), 2**63 - 1
    labels = torch.tensor([[[7, low, 7, 300, 7, 300, high, 7, high, 7, -(2**40), 7, -(2**40), 2**40]]])
    narrow = torch.tensor([[[1, 44, 1, 0, 1]]], dtype=torch.uint8)
    with cuda_host.on_cpu():
        out = kernels.label_closing(labels, 3, 7, low)
        assert torch.equal(kernels.label_closing(narrow, 3, 300, 255), narrow)  # no pixel is background
    expected = [7, low, 7, 300, 300, 300, high, high, high, 7, -(2**40), -(2**40), -(2**40), 2**40]
    assert out.tolist() == [[expected]]
    assert torch.equal(out, reference.label_closing(labels, 3, 7, low))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes(dtype):
    """In an order of their labels that is not that of their pixels; each grows into what several claim."""
    labels = (torch.arange(12 * 40) * 61 % 97 * (torch.arange(12 * 40) % 3 == 0)).view(1, 12, 40).to(dtype)
    for operation in kernels.STEPS:
        result = cuda_host.every_order(lambda op=operation: kernels.label_morphology(labels, op, 5, 0, 255))
        assert torch.equal(result, by_cv2(labels, operation, 5))


def test_every_byte_is_told_from_every_other():
    labels = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).view(1, 1, -1)
    for label in range(0, 256, 5):
        with cuda_host.on_cpu():
            result = kernels.label_morphology(labels, "erosion", 3, (label + 1) % 256, label)
        kept = (torch.arange(3 * 256) % 3 == 1) | (labels[0, 0] == label) | (labels[0, 0] == (label + 1) % 256)
        kept[0] = kept[-1] = True  # nothing lies outside
        assert torch.equal(result[0, 0], torch.where(kept, labels[0, 0].int(), (label + 1) % 256).to(torch.uint8))


FAULTS = {
    "no barrier between the passes": ("__syncthreads();\n    unsigned* const swap", "unsigned* const swap"),
    "no barrier after packing": ("__syncthreads();\n    if (steps > 1)", "if (steps > 1)"),
    "the last class, not the smallest": ("|| current < to[bit]", "|| true"),
    "the first class, not the smallest": ("|| current < to[bit]", ""),
    "rows at the region's edge not seen": ("? column : i", "? i : i"),
    "pixels beyond the region seen": ("words[i] & region.inside(column)", "words[i]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault):
    """What these tests rest on: the orders of the threads tell a race."""
    right, wrong = FAULTS[fault]
    y, x = torch.meshgrid(torch.arange(61), torch.arange(60), indexing="ij")
    labels = torch.where((y % 4 < 2) & (x % 4 < 2), (y // 4 * 15 + x // 4 + 100) * 7 % 241, 0)[None]
    source = _cuda.source
    assert right in source("label_closing", {})

    def faulty(*args):
        return source(*args).replace(right, wrong)

    with mock.patch.object(_cuda, "source", faulty), pytest.raises((AssertionError, cuda_host.KernelError)) as seen:
        for operation in ("closing", "dilation"):
            result = cuda_host.every_order(lambda op=operation: kernels.label_morphology(labels, op, 17, 0, 255))
            assert torch.equal(result, by_cv2(labels, operation, 17))
    assert "error:" not in str(seen.value), "it does not compile"


def test_the_op_is_served_by_it():
    row = ops.backends()["label_closing"]["cuda"]
    assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


GPU_SHAPES = [((1, 1, 1), 15), ((4, 512, 512), 15), ((3, 61, 67), 7), ((1, 300, 517), 201), ((1, 1100, 1030), 801)]


@pytest.mark.cuda
@pytest.mark.parametrize("shape, k", GPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", list(kernels.STEPS))
def test_cuda_on_a_side_stream(shape, k, dtype, operation):
    labels = blobs(shape, dtype, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        result = kernels.label_morphology(labels * 1, operation, k, 0, 255)
        again = kernels.label_morphology(labels * 1, operation, k, 0, 255)
    torch.cuda.synchronize()
    assert torch.equal(result, again)
    assert torch.equal(result.cpu(), by_cv2(labels.cpu().to(torch.int32), operation, k).to(dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("k", [15, 801])
def test_cuda_graph(k):
    labels = blobs((2, 900, 700), device="cuda")
    graph, out = captured(lambda: ops.label_closing(labels, k))
    labels.copy_(blobs((2, 900, 700), device="cuda"))
    graph.replay()
    assert torch.equal(out.cpu(), ops.label_closing(labels.cpu(), k))
