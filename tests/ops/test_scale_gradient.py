"""scale_gradient_: the backward of the losses, in place."""

import pytest
import torch
from support.triton_row import CAPABILITIES, DEVICE, compile_launches, serves

from camguide_fast import ops, reference

IMPLEMENTATIONS = {"op": ops.scale_gradient_, "reference": reference.scale_gradient_}
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def factor(value, dtype):
    return torch.tensor(value, dtype=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("scale", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [1.0, 1e-6, -37.5, 0.0])
def test_multiplies_in_the_wide_dtype(scale, dtype, value):
    grad = (torch.randn(3, 17, 61, dtype=torch.float64) * 1000).to(dtype)
    expected = (grad.to(factor(value, dtype).dtype) * factor(value, dtype)).to(dtype)
    scale(grad, factor(value, dtype))
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number(dtype):
    """All 65536: subnormal, infinite and NaN too, and their rounding after a multiplication."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for value in (1.0, 0.3, 3.7, 2.0**-9):
        result, expected = every.clone(), every.clone()
        ops.scale_gradient_(result, torch.tensor(value))
        reference.scale_gradient_(expected, torch.tensor(value))
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num().view(torch.int16), expected.nan_to_num().view(torch.int16))


def test_sizes_and_threads(same_bits_on_any_threads):
    def scaled(x):
        result = x.clone()
        ops.scale_gradient_(result, torch.tensor(0.3))
        return result

    x = torch.randn(100_003)
    for n in (1, 15, 16, 17, 1025):
        assert torch.equal(scaled(x[:n]), x[:n] * 0.3)
    same_bits_on_any_threads(lambda: [scaled(x)])


def test_opcheck():
    torch.library.opcheck(torch.ops.camguide_fast.scale_gradient_.default, (torch.randn(3, 5), torch.tensor(0.5)))


class TestBackward:
    """What the losses make of it."""

    def loss(self, x):
        return ops.local_consistency_loss(x, 3, 1e-5, None)

    def gradient(self, x):
        leaf = x.detach().requires_grad_()
        self.loss(leaf).backward()
        return leaf.grad

    def test_twice_through_a_kept_graph(self):
        x = torch.rand(1, 3, 8, 9, requires_grad=True)
        loss = self.loss(x)
        once, twice = (torch.autograd.grad(2 * loss, x, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(once, twice)
        assert torch.equal(once, torch.autograd.grad(2 * loss, x)[0])  # the last one, in place

    def test_a_batch_of_factors(self):
        x = torch.rand(1, 3, 8, 9, requires_grad=True)
        (grads,) = torch.autograd.grad(self.loss(x), x, torch.tensor([1.0, -2.0]), is_grads_batched=True)
        assert torch.equal(grads[0], self.gradient(x)) and torch.equal(grads[1], -2 * grads[0])

    def test_one_gradient_in_memory(self):
        x = torch.rand(1, 3, 8, 9, requires_grad=True)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = self.loss(x)
        expected = self.gradient(x)
        (grad,) = torch.autograd.grad(loss, x)
        assert grad.data_ptr() in {t.data_ptr() for t in kept}
        assert torch.equal(grad, expected)


ROUNDING = dict.fromkeys(FLOATS, 0.0) | {torch.bfloat16: 2**-7 if DEVICE == "cpu" else 0}  # the interpreter cuts off


class TestTriton:
    """The kernel, interpreted where there is no GPU."""

    @pytest.fixture(autouse=True)
    def _triton(self):
        pytest.importorskip("triton")
        with serves("scale_gradient", "scale_gradient_"):
            yield

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("size", [(0,), (1,), (3, 5, 101)], ids=str)  # the last takes two blocks
    def test_equals_the_twin(self, dtype, size):
        grad = (torch.randn(size, dtype=torch.float64, device=DEVICE) * 1000).to(dtype)
        expected = grad.clone()
        reference.scale_gradient_(expected, factor(-0.3, dtype).to(DEVICE))
        before = grad.data_ptr()
        bound = ROUNDING[dtype]
        assert ops.scale_gradient_(grad, factor(-0.3, dtype).to(DEVICE)) is None
        torch.testing.assert_close(grad, expected, rtol=bound, atol=0)
        assert grad.data_ptr() == before

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_rounds_every_half_once(self, dtype):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=DEVICE).to(torch.int16).view(dtype)
        every = every[::7].clone()
        expected = every.clone()
        reference.scale_gradient_(expected, torch.tensor(0.3, device=DEVICE))
        ops.scale_gradient_(every, torch.tensor(0.3, device=DEVICE))
        torch.testing.assert_close(every, expected, rtol=ROUNDING[dtype], atol=1e-37, equal_nan=True)

    def test_compiles_without_a_gpu(self):
        found = compile_launches("""
import torch
from support.triton_row import CAPABILITIES, DEVICE, compile_launches, serves
from camguide_fast.kernels.scale_gradient import scale_gradient_
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    scale_gradient_(torch.zeros(4096, dtype=dtype), torch.ones(()))
""")
        assert len(found) == 2 * len(CAPABILITIES)  # halves alone


def test_has_a_row_on_cuda():
    assert ops.backends()["scale_gradient_"]["cuda"].why != "no GPU kernel yet"
