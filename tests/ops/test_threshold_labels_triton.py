"""threshold_labels: the Triton kernel, interpreted where there is no GPU."""

import pytest
import torch
from support.triton_row import DEVICE, compile_launches, graph_equals_eager, serves

from camguide_fast import ops, reference

pytest.importorskip("triton")

OP = ops.threshold_labels
# up, the same, down; the third takes two blocks
SHAPES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 5, 3, 4), (9, 7)),
    ((1, 3, 8, 9), (33, 32)),
    ((3, 2, 5, 7), (5, 7)),
    ((2, 3, 9, 11), (4, 3)),
]


@pytest.fixture(autouse=True)
def _triton():
    with serves("threshold_labels", "threshold_labels"):
        yield


def case(shape, size, dtype=torch.float64):
    """Classes absent from images, an image without any, thresholds of either sign, padding."""
    b, k = shape[:2]
    label = torch.rand(b, k, device=DEVICE) < 0.5
    label[0, 0], label[-1] = True, label[-1] & (b == 1)
    tau = torch.linspace(0.3, -0.1, b, dtype=dtype if dtype.itemsize > 2 else torch.float32, device=DEVICE)
    cam = torch.rand(shape, dtype=dtype, device=DEVICE) - 0.2
    return cam, label, tau, torch.rand(b, 1, *size, device=DEVICE) > 0.2


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_equals_the_twin(shape, size):
    cam, label, tau, valid = case(shape, size)
    poisoned = torch.where(label[:, :, None, None], cam, torch.nan)  # absent classes are never touched
    for mask in (None, valid):
        expected = reference.threshold_labels(cam, label, tau, size, mask)
        assert torch.equal(OP(poisoned, label, tau, size, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_precision(dtype):
    cam, label, tau, valid = case((2, 4, 9, 8), (31, 29), dtype)
    expected = reference.threshold_labels(cam.double(), label, tau.double(), (31, 29), valid)
    assert (OP(cam, label, tau, (31, 29), valid) == expected).float().mean() > 0.998


def test_ties_and_nan():
    cam = torch.full((1, 3, 4, 4), 0.5, device=DEVICE)
    label, size = torch.tensor([[0, 1, 1]], device=DEVICE), (6, 5)
    assert (OP(cam, label, 0.25, size) == 2).all()  # of equal classes the first
    assert not OP(cam, label, 0.5, size).any() and not OP(cam, label, torch.full((1,), torch.nan), size).any()
    for c in (1, 2):
        broken = cam.clone()
        broken[0, c, 1, 2] = torch.nan
        expected = reference.threshold_labels(broken, label, torch.full((1,), 0.25), list(size), None)
        assert torch.equal(OP(broken, label, 0.25, size), expected) and not expected.all() and expected.any()


def test_dtypes_strides_and_repeat():
    cam, label, tau, valid = case((2, 3, 5, 7), (11, 13), torch.float32)
    first = OP(cam, label, tau, (11, 13), valid)
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (cam, label, valid)]
    assert torch.equal(OP(strided[0], strided[1].float() * 0.5, tau.double(), [11, 13], strided[2]), first)


def test_neighbours_in_neighbouring_threads_and_compiled_once():
    found = compile_launches(
        """
import torch
from camguide_fast.kernels.threshold_labels import threshold_labels
for (b, k, h, w), size in [((1, 1, 16, 32), (64, 64)), ((2, 20, 128, 128), (512, 512)), ((3, 5, 125, 94), (500, 375))]:
    cam, valid = torch.zeros(b, k, h, w), torch.ones(b, 1, *size, dtype=torch.bool)
    threshold_labels(cam, torch.ones(b, k), torch.zeros(b), size, valid)
""",
        (89,),
    )
    assert len({x["key"] for x in found}) == 1
    assert found[0]["shuffles"] == found[0]["wide_loads"] == 0


def test_kernels_compile_without_a_gpu():
    compile_launches("""
import torch
from camguide_fast.kernels.threshold_labels import threshold_labels
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    threshold_labels(torch.zeros(2, 3, 8, 9, dtype=dtype), torch.ones(2, 3), torch.zeros(2), (16, 17), None)
""")


@pytest.mark.cuda
def test_cuda_graph():
    cam, label, tau, valid = case((4, 20, 128, 128), (512, 512), torch.float32)
    graph_equals_eager(lambda x: (OP(x, label, tau, (512, 512), valid),), cam)
