"""edge_consistency_loss: the Triton kernels, interpreted where there is no GPU."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from support.triton_row import DEVICE, compile_launches, graph_equals_eager, serves

from camguide_fast import ops, reference

triton = pytest.importorskip("triton")
kernels = importlib.import_module("camguide_fast.kernels.edge_consistency")

OP = ops.edge_consistency_loss
DEFAULTS = (0.1, 0.05, 2.0, 0.35, 2.0)
SHAPES = [(1, 1, 1, 1), (1, 1, 1, 6), (1, 1, 2, 3), (2, 3, 8, 9), (1, 1, 23, 25)]  # the last takes two blocks


@pytest.fixture(autouse=True)
def _triton():
    with serves("edge_consistency", "edge_consistency_loss"):
        yield


def case(shape, dtype=torch.float64):
    b, k, h, w = shape
    label = torch.rand(b, k, device=DEVICE) < 0.5
    label[0, 0] = True
    return torch.rand(shape, dtype=dtype, device=DEVICE), torch.rand(b, 1, h, w, device=DEVICE) * 0.15, label


def loss_and_gradient(function, x, *args):
    x = x.detach().requires_grad_()
    loss = function(x, *args)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("numbers", [DEFAULTS, (0.05, 0.0, 1.5, 0.6, 0.3), (0.1, 0.05, 1.0, 0.35, 2.0)], ids=str)
def test_equals_the_twin(shape, numbers):
    cam, support, label = case(shape)
    poisoned = torch.where(label[:, :, None, None], cam, torch.nan)  # absent classes are never touched
    valid = torch.ones_like(support, dtype=torch.bool)
    valid[:, :, 6:, 7:] = False
    for mask in (None, valid):
        x = poisoned if mask is None else torch.where(mask, poisoned, torch.nan)
        loss, grad = loss_and_gradient(OP, x, support, label, *numbers, mask)
        expected, exact = loss_and_gradient(reference.edge_consistency_loss, cam, support, label, *numbers, mask)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("programs", [1, 5])  # groups of classes: one with all of an image, or two
@pytest.mark.parametrize("classes", [3, 35])  # the list of an image's classes is made of 32 at a time
def test_several_classes_of_an_image_in_a_program(programs, classes, monkeypatch):
    cam, support, label = case((3, classes, 5, 6))
    label[:] = False
    label[0, [0, 2, -1]], label[2, -1] = True, True
    valid = torch.ones_like(support, dtype=torch.bool)
    valid[:, :, 4:, 5:] = False
    poisoned = torch.where(label[:, :, None, None] & valid, cam, torch.nan)
    alone = loss_and_gradient(OP, poisoned, support, label, *DEFAULTS, valid)
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    loss, grad = loss_and_gradient(OP, poisoned, support, label, *DEFAULTS, valid)
    expected, exact = loss_and_gradient(reference.edge_consistency_loss, cam, support, label, *DEFAULTS, valid)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, exact, rtol=1e-9, atol=1e-12)
    assert torch.equal(grad, alone[1]) and torch.equal(loss, OP(poisoned, support, label, *DEFAULTS, valid))


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float64, torch.float16], ids=str)
def test_dtypes_of_the_label(kind):
    cam, support, label = case((2, 3, 4, 5), torch.float32)
    assert torch.equal(OP(cam, support, label.to(kind)), OP(cam, support, label.float() * 2 - 1))


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 2e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_precision(dtype, bound):
    cam, support, label = case((1, 2, 13, 11))
    cam = cam.to(dtype)
    loss, grad = loss_and_gradient(OP, cam, support, label)
    expected, exact = loss_and_gradient(reference.edge_consistency_loss, cam.double(), support, label, *DEFAULTS, None)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item()
    assert (grad - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_flat_maps_cost_nothing(dtype):
    """Rounding must not turn a constant into edges, which division by their maximum would make full ones."""
    for value in (0.0, 0.3, 1.0):
        cam = torch.full((1, 1, 13, 17), value, dtype=dtype, device=DEVICE)
        ones = cam.new_ones(1, 1)
        loss, grad = loss_and_gradient(OP, cam, cam.new_zeros(1, 1, 13, 17), ones)
        assert loss == 0 and not grad.any()


def test_no_nan_where_the_norm_is_zero():
    cam = torch.zeros(1, 1, 12, 12, device=DEVICE)
    cam[..., 5, 5] = 1
    _, grad = loss_and_gradient(OP, cam, torch.zeros_like(cam), cam.new_ones(1, 1))
    assert grad.isfinite().all() and grad.any()


def test_nothing_counts_and_nan_that_counts():
    cam, support, label = case((2, 2, 4, 4), torch.float32)
    nowhere = torch.zeros_like(support, dtype=torch.bool)
    for s, y, valid in [(support, label & False, None), (support + 1, label, None), (support, label, nowhere)]:
        loss, grad = loss_and_gradient(OP, cam, s, y, *DEFAULTS, valid)
        assert loss == 0 and not grad.any()
    cam[0, 0, 1, 2] = torch.nan
    assert OP(cam, support, label).isnan()


def test_strides_and_repeat():
    cam, support, label = case((2, 3, 5, 7), torch.float32)
    loss, grad = loss_and_gradient(OP, cam, support, label)
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (cam, support)]
    again = loss_and_gradient(OP, *strided, label.float() * 0.5)
    assert torch.equal(again[0], loss) and torch.equal(again[1], grad)
    assert torch.equal(OP(cam, support, label), loss)  # no gradient asked for


@pytest.mark.parametrize("contrast", [1e-4, 1e-6])
def test_fp16_gradient_is_finite_where_maps_are_nearly_flat(contrast):
    cam, support, label = case((1, 2, 13, 11))
    cam = (cam * contrast).half()
    _, grad, scale = kernels.edge_consistency_loss(cam, support, label, *DEFAULTS, None, True)
    _, exact = loss_and_gradient(reference.edge_consistency_loss, cam.double(), support, label, *DEFAULTS, None)
    assert grad.isfinite().all() and (grad.float() * scale).half().isfinite().all()
    assert exact.abs().max() / scale / kernels.FACTOR > 65504  # with N alone it would not fit
    if contrast == 1e-4:
        assert (grad.double() * scale - exact).abs().max() <= 1e-3 * exact.abs().max()


def test_neighbours_in_neighbouring_threads():
    """Loads of a warp are coalesced then; all that goes between threads is for the sums and the maximum."""
    shuffles = dict(blur_kernel=0, scharr_adjoint_kernel=0, blur_adjoint_kernel=0, invalid_kernel=0)
    for x in compile_launches(
        """
import torch
from camguide_fast.kernels.edge_consistency import edge_consistency_loss
for dtype in (torch.float32, torch.float16):
    cam, support = torch.zeros(2, 20, 128, 128, dtype=dtype), torch.zeros(2, 1, 128, 128)
    valid = torch.ones(2, 1, 128, 128, dtype=torch.bool)
    edge_consistency_loss(cam, support, torch.ones(2, 20), 0.1, 0.05, 2.0, 0.35, 2.0, valid, True)
""",
        (89,),
    ):
        assert x["shuffles"] <= shuffles.get(x["kernel"], 25) and x["wide_loads"] == 0, x


def test_compiled_once_for_all_sizes_and_numbers():
    found = compile_launches(
        """
import torch
from camguide_fast.kernels.edge_consistency import edge_consistency_loss
for (b, k, h, w), tau in [((1, 1, 16, 32), 0.1), ((2, 20, 128, 128), 0.2), ((3, 5, 125, 94), 0.3)]:
    cam, support, valid = torch.zeros(b, k, h, w), torch.zeros(b, 1, h, w), torch.ones(b, 1, h, w, dtype=torch.bool)
    edge_consistency_loss(cam, support, torch.ones(b, k), tau, tau / 2, 1 + tau, 3 * tau, tau, valid, True)
""",
        (89,),
    )
    kernels = {x["kernel"] for x in found}
    assert len({x["key"] for x in found}) == len(kernels) == 8


def test_kernels_compile_without_a_gpu():
    compile_launches("""
import torch
from camguide_fast.kernels.edge_consistency import edge_consistency_loss
cam, support = torch.zeros(2, 3, 8, 9, dtype=torch.float16), torch.zeros(2, 1, 8, 9)
valid, label = torch.ones(2, 1, 8, 9, dtype=torch.bool), torch.ones(2, 3)
edge_consistency_loss(cam, support, label, 0.1, 0.05, 1.5, 0.35, 2.0, valid, True)
""")


def test_every_declared_triton_compiles_the_kernels():
    """edge_consistency is the first to ask for more: 3.3 does not compile it."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    declared = re.findall(r'"triton([^";]*)', project)
    assert len(declared) == 3 and all(Version("3.4") in SpecifierSet(x) for x in declared)
    assert not any(Version(old) in SpecifierSet(x) for x in declared for old in ("3.2", "3.3.1"))
    assert Version(triton.__version__) in SpecifierSet(declared[0])


@pytest.mark.cuda
def test_cuda_graph():
    cam, support, label = case((4, 20, 128, 128), torch.float32)
    graph_equals_eager(lambda x: loss_and_gradient(OP, x, support, label), cam)
