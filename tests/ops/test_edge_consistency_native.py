"""edge_consistency_loss: precision, the C++ row against the twin on every size, the same bits on any threads."""

import pytest
import torch
from support.edge_consistency import DEFAULTS, IMPLEMENTATIONS, OP, case, twin

from camguide_fast import reference


@pytest.fixture(params=IMPLEMENTATIONS)
def loss_of(request):
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 2e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_precision(loss_of, dtype, bound):
    cam, support, label = case((2, 20, 23, 31))
    cam = cam.to(dtype)
    exact = cam.double().requires_grad_()
    loss, expected = loss_of(cam.requires_grad_(), support, label), loss_of(exact, support, label)
    (grad,), (exact_grad,) = torch.autograd.grad(loss, cam), torch.autograd.grad(expected, exact)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item()
    assert (grad.double() - exact_grad).abs().max() <= bound * exact_grad.abs().max()


@pytest.mark.parametrize("shape", [(2, 3, 40, 17), (1, 2, 1, 40), (1, 2, 40, 1), (1, 2, 2, 2), (1, 1, 33, 64)], ids=str)
@pytest.mark.parametrize("gamma", [2.0, 1.0, 1.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_equals_the_twin_on_every_size(shape, gamma, masked, dtype, bound):
    """The masks first: where an E were within rounding of tau_hard, or of S + delta, values could not be compared."""
    cam, support, label = case(shape, dtype)
    valid = torch.nn.functional.interpolate((torch.rand(shape[0], 1, 3, 3) > 0.2).float(), shape[2:]) > 0
    valid = valid if masked else None
    exact = cam.double().requires_grad_()
    x = exact if valid is None else torch.where(valid, exact, 0)
    m = reference._filters.scharr_norm(reference._filters.gaussian(x, 5, 1.5)).detach()
    m = m if valid is None else torch.where(reference.edge_consistency._inside(valid), m, 0)
    e = m / m.amax((2, 3), keepdim=True).clamp(min=1e-12)
    counts = label[:, :, None, None] & (support < 0.1)
    near = ((e - 0.35).abs() < 1e-5) | (((e - support - 0.05).abs() < 1e-6) & (m > 0))
    assert not (near & counts).any()
    loss, expected = (
        OP(cam.requires_grad_(), support, label, gamma=gamma, valid=valid),
        twin(exact, support, label, valid, gamma=gamma),
    )
    (grad,), (exact_grad,) = torch.autograd.grad(loss, cam), torch.autograd.grad(expected, exact)
    assert abs(loss.item() - expected.item()) <= bound * expected.item()
    assert (grad.double() - exact_grad).abs().max() <= bound * exact_grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_precise_as_the_twin(dtype):
    cam, support, label = case((2, 20, 23, 31))
    cam = cam.to(dtype)
    exact = cam.double().requires_grad_()
    (expected,) = torch.autograd.grad(twin(exact, support, label) * 100, exact)
    errors = {}
    for name, loss_of in IMPLEMENTATIONS.items():
        leaf = cam.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(leaf, support, label) * 100, leaf)
        errors[name] = (grad.double() - expected).norm()
    assert errors["op"] <= 2 * errors["reference"]


def test_same_bits(same_bits_on_any_threads):
    cam, support, label = case((4, 5, 50, 37), torch.float32)
    op, valid = torch.ops.camguide_fast.edge_consistency_loss, torch.rand(4, 1, 50, 37) > 0.01
    same_bits_on_any_threads(lambda: op(cam, support, label, *DEFAULTS.values(), None, True))
    same_bits_on_any_threads(lambda: op(cam, support, label, *DEFAULTS.values(), valid, True))
