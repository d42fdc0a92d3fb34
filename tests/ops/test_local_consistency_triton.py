"""local_consistency_loss: the Triton kernels, interpreted where there is no GPU."""

import pytest
import torch
from support.triton_row import DEVICE, compile_launches, graph_equals_eager, serves

from camguide_fast import ops, reference

pytest.importorskip("triton")

OP = ops.local_consistency_loss
# narrower than the window, several classes of one pixel, two strips, two bands of rows
SHAPES = [(1, 1, 1, 1), (2, 3, 3, 5), (1, 20, 2, 3), (1, 20, 2, 18), (1, 2, 18, 2)]


@pytest.fixture(autouse=True)
def _triton():
    with serves("local_consistency", "local_consistency_loss"):
        yield


def maps(shape, dtype=torch.float64):
    """Signed, with all-zero pixels and classes that tie."""
    f = torch.randn(shape, dtype=dtype, device=DEVICE) * (torch.rand(shape[0], 1, *shape[2:], device=DEVICE) > 0.2)
    f[0, :, -1] = 2
    return f


def loss_and_gradient(function, x, *args):
    x = x.detach().requires_grad_()
    loss = function(x, *args)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [1, 3, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_twin(shape, window, masked):
    if window == 9 and max(shape[2:]) > 5:
        pytest.skip("the interpreter takes its time")
    f = maps(shape)
    valid = torch.rand(shape[0], 1, *shape[2:], device=DEVICE) > 0.3 if masked else None
    loss, grad = loss_and_gradient(OP, f, window, 1e-5, valid)
    expected, expected_grad = loss_and_gradient(reference.local_consistency_loss, f, window, 1e-5, valid)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_precision(dtype, bound):
    f = maps((1, 5, 6, 7)).to(dtype)
    loss, grad = loss_and_gradient(OP, f, 3)
    expected, exact = loss_and_gradient(reference.local_consistency_loss, f.double(), 3, 1e-5, None)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item()
    assert (grad - exact).abs().max() <= bound * exact.abs().max()


def test_invalid_pixels_influence_nothing():
    f = maps((1, 3, 4, 5), torch.float32)
    valid = torch.rand(1, 1, 4, 5, device=DEVICE) > 0.4
    loss, grad = loss_and_gradient(OP, f, 3, 1e-5, valid)
    poisoned = loss_and_gradient(OP, torch.where(valid, f, torch.nan), 3, 1e-5, valid)
    assert torch.equal(poisoned[0], loss) and torch.equal(poisoned[1], grad) and not torch.where(valid, 0, grad).any()
    loss, grad = loss_and_gradient(OP, f, 3, 1e-5, valid & False)
    assert loss == 0 and not grad.any()
    assert OP(torch.where(valid, torch.nan, f), 3, 1e-5, valid).isnan()  # but a NaN that counts is not hidden


def test_strides_and_repeat():
    f = maps((2, 3, 4, 5), torch.float32)
    loss, grad = loss_and_gradient(OP, f, 3)
    again = loss_and_gradient(OP, f.transpose(2, 3).contiguous().transpose(2, 3), 3)
    assert torch.equal(again[0], loss) and torch.equal(again[1], grad)
    assert torch.equal(OP(f, 3), loss)  # no gradient asked for


def test_kernels_compile_without_a_gpu():
    compile_launches("""
import torch
from camguide_fast.kernels.local_consistency import local_consistency_loss
f, valid = torch.zeros(2, 20, 8, 40, dtype=torch.float16), torch.ones(2, 1, 8, 40, dtype=torch.bool)
local_consistency_loss(f, 7, 1e-5, valid, True)
""")


@pytest.mark.cuda
def test_cuda_graph():
    valid = torch.rand(4, 1, 128, 128, device=DEVICE) > 0.1
    graph_equals_eager(lambda f: loss_and_gradient(OP, f, 7, 1e-5, valid), maps((4, 20, 128, 128), torch.float32))
