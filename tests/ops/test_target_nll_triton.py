"""target_nll: the Triton kernels, interpreted where there is no GPU."""

import pytest
import torch
from support.triton_row import DEVICE, compile_launches, graph_equals_eager, serves

from camguide_fast import ops, reference

pytest.importorskip("triton")

OP = ops.target_nll
SHAPES = [(1, 1, 1, 1), (3, 5, 5, 7), (1, 20, 2, 3), (1, 2, 33, 32)]  # the last takes two blocks


@pytest.fixture(autouse=True)
def _triton():
    with serves("target_nll", "target_nll"):
        yield


def case(shape, dtype=torch.float64):
    """Classes absent from images, an image without any, values outside [0, 1], ties, ignored pixels."""
    b, k, h, w = shape
    label = torch.rand(b, k, device=DEVICE) < 0.5
    label[0, 0] = True
    label[-1] = label[-1] & (b == 1)
    label[0, 0] = True
    cam = (torch.rand(shape, device=DEVICE, dtype=dtype) * 1.4 - 0.2).mul(8).round().div(8)
    target = torch.randint(0, k + 1, (b, h, w), device=DEVICE)
    target[torch.rand(b, h, w, device=DEVICE) < 0.2] = 255
    return cam, target, label


def loss_and_gradient(function, x, *args):
    x = x.detach().requires_grad_()
    loss = function(x, *args)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("balance", [False, True])
def test_equals_the_twin(shape, balance):
    cam, target, label = case(shape)
    for smooth in (0.01, 1e-4):
        loss, grad = loss_and_gradient(OP, cam, target, label, 255, smooth, balance)
        expected, expected_grad = loss_and_gradient(reference.target_nll, cam, target, label, 255, smooth, balance)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_precision(dtype, bound):
    cam, target, label = case((2, 5, 7, 9))
    cam = cam.to(dtype)
    for balance in (False, True):
        loss, grad = loss_and_gradient(OP, cam, target, label, 255, 1e-4, balance)
        expected, exact = loss_and_gradient(reference.target_nll, cam.double(), target, label, 255, 1e-4, balance)
        assert loss.dtype == torch.float32 and grad.dtype == dtype
        assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item()
        assert (grad - exact).abs().max() <= bound * exact.abs().max()


def test_what_does_not_count_is_not_read():
    cam, target, label = case((2, 3, 6, 5))
    label[:, 1], label[1, 2] = False, True
    t = (target - 1).clamp(0, 2).flatten(1)
    counts = (target == 0) | ((target < 255) & (target > 0) & label.gather(1, t).view_as(target))
    used = (counts & label.any(1)[:, None, None])[:, None] & label[:, :, None, None]
    loss, grad = loss_and_gradient(OP, cam, target, label)
    poisoned = loss_and_gradient(OP, torch.where(used, cam, torch.nan), target, label)
    assert torch.equal(poisoned[0], loss) and torch.equal(poisoned[1], grad) and not grad[~used].any()
    assert OP(torch.where(used, torch.nan, cam), target, label).isnan()  # but a NaN that counts is not hidden


def test_nothing_counts_and_one_kind_alone():
    cam, target, label = case((2, 3, 4, 4), torch.float32)
    for balance in (False, True):
        loss, grad = loss_and_gradient(OP, cam, target * 0 + 255, label, 255, 0.01, balance)
        assert loss == 0 and not grad.any()
        for t in (target * 0, target * 0 + 1):
            got = loss_and_gradient(OP, cam, t, label, 255, 0.01, balance)
            torch.testing.assert_close(got, loss_and_gradient(reference.target_nll, cam, t, label, 255, 0.01, balance))


def test_dtypes_strides_and_repeat():
    cam, target, label = case((2, 3, 5, 7), torch.float32)
    first = loss_and_gradient(OP, cam, target, label)
    strided = cam.transpose(2, 3).contiguous().transpose(2, 3), target.transpose(1, 2).contiguous().transpose(1, 2)
    for x, t, y in [(cam, target.int(), label.float()), (*strided, label), (cam, target.byte(), label.long())]:
        assert all(torch.equal(a, b) for a, b in zip(loss_and_gradient(OP, x, t, y), first, strict=True))
    assert torch.equal(OP(cam, target, label), first[0])  # no gradient asked for


def test_compiled_once_for_all_numbers_and_counts_summed_once():
    found = compile_launches(
        """
import torch
from camguide_fast.kernels.target_nll import target_nll
for b, k, smooth in [(1, 17, 0.01), (2, 20, 0.02), (3, 32, 1e-5)]:
    for balance in (False, True):
        cam, target = torch.zeros(b, k, 128, 128), torch.zeros(b, 128, 128, dtype=torch.int64)
        target_nll(cam, target, torch.ones(b, k), 255, smooth, balance, True)
""",
        (89,),
    )
    assert len({x["key"] for x in found}) == 6  # two depend on `balance`, count_kernel and totals_kernel do not
    plain, balanced = (x for x in {x["key"]: x for x in found}.values() if x["kernel"] == "target_nll_kernel")
    assert plain["shuffles"] == balanced["shuffles"]  # the sums of what all programs counted are elsewhere


def test_kernels_compile_without_a_gpu():
    compile_launches("""
import torch
from camguide_fast.kernels.target_nll import target_nll
cam, target = torch.zeros(2, 20, 8, 8, dtype=torch.float16), torch.zeros(2, 8, 8, dtype=torch.int64)
target_nll(cam, target, torch.ones(2, 20), 255, 0.01, True, True)
""")


@pytest.mark.cuda
@pytest.mark.parametrize("balance", [False, True])
def test_cuda_graph(balance):
    cam, target, label = case((4, 20, 128, 128), torch.float32)
    graph_equals_eager(lambda x: loss_and_gradient(OP, x, target, label, 255, 0.01, balance), cam)
