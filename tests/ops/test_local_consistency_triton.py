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


def test_fp16_gradient_is_finite_where_classes_sum_to_little():
    """As no loss scale could mend an infinity, none may be stored."""
    f = (torch.rand(1, 5, 6, 7, device=DEVICE) * 5e-7).half()
    _, stored, scale = torch.ops.camguide_fast.local_consistency_loss(f, 3, 1e-5, None, True)
    _, grad = loss_and_gradient(OP, f, 3)
    _, exact = loss_and_gradient(reference.local_consistency_loss, f.double(), 3, 1e-5, None)
    assert stored.isfinite().all() and grad.isfinite().all()
    assert exact.abs().max() * f[:, 0].numel() > 65504  # with N alone it would not fit
    assert (grad - exact).abs().max() <= 1e-3 * exact.abs().max()


def test_classes_stay_in_their_thread():
    """Half of a pixel's classes in one thread, half in another: a shuffle each sum, and no number goes through them
    that a thread loads beside its own. Written as is, Triton makes 134 shuffles of it, 321 for fp16."""
    found = compile_launches(CALLS, (89,))
    assert {x["kernel"] for x in found} == {"invalid_kernel", "local_consistency_kernel", "mean_kernel"}
    for x in found:
        if x["kernel"] == "local_consistency_kernel":
            assert x["shuffles"] <= 20 and x["instructions"] <= 2500
        if x["kernel"] == "invalid_kernel":
            assert x["shuffles"] == 0 and x["instructions"] <= 200


CALLS = """
import torch
from camguide_fast.kernels.local_consistency import local_consistency_loss
for dtype in (torch.float32, torch.float16):
    f, valid = torch.zeros(2, 20, 128, 128, dtype=dtype), torch.ones(2, 1, 128, 128, dtype=torch.bool)
    local_consistency_loss(f, 7, 1e-5, valid, True)
"""


def test_compiled_once_for_all_sizes_and_numbers():
    found = compile_launches(
        """
import torch
from camguide_fast.kernels.local_consistency import local_consistency_loss
for size, eps in [((1, 17, 16, 32), 1e-5), ((2, 20, 128, 128), 1e-4), ((3, 32, 125, 94), 1.0)]:
    local_consistency_loss(torch.zeros(size), 7, eps, torch.ones(size[0], 1, *size[2:], dtype=torch.bool), True)
""",
        (89,),
    )
    kernels = {x["kernel"] for x in found}
    assert len({x["key"] for x in found}) == len(kernels) == 3


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
