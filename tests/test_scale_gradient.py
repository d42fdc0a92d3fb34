"""scale_gradient: the backward of the losses."""

import pytest
import torch

from camguide_fast import ops, reference

IMPLEMENTATIONS = {"op": ops.scale_gradient, "reference": reference.scale_gradient}
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def factor(value, dtype):
    return torch.tensor(value, dtype=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("scale_of", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [1.0, 1e-6, -37.5, 0.0])
def test_multiplies_in_the_wide_dtype(scale_of, dtype, value):
    grad = (torch.randn(3, 17, 61, dtype=torch.float64) * 1000).to(dtype)
    result = scale_of(grad, factor(value, dtype))
    assert result.dtype == dtype
    wide = grad.to(factor(value, dtype).dtype)
    assert torch.equal(result, (wide * factor(value, dtype)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number(dtype):
    """All 65536: subnormal, infinite and NaN too, and their rounding after a multiplication."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for value in (1.0, 0.3, 3.7, 2.0**-9):
        result, expected = (f(every, torch.tensor(value)) for f in IMPLEMENTATIONS.values())
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num().view(torch.int16), expected.nan_to_num().view(torch.int16))


def test_strides_sizes_and_threads(same_bits_on_any_threads):
    grad = torch.randn(5, 37, 41)
    assert torch.equal(ops.scale_gradient(grad.transpose(0, 2), torch.tensor(0.3)), grad.transpose(0, 2) * 0.3)
    for n in (1, 15, 16, 17, 1025):
        assert torch.equal(ops.scale_gradient(grad.flatten()[:n], torch.tensor(0.3)), grad.flatten()[:n] * 0.3)
    large = torch.randn(100_003)
    same_bits_on_any_threads(lambda: [ops.scale_gradient(large, torch.tensor(0.3))])


def test_opcheck():
    torch.library.opcheck(torch.ops.camguide_fast.scale_gradient.default, (torch.randn(3, 5), torch.tensor(0.5)))
