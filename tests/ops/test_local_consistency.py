"""local_consistency_loss: Eq. 35-39."""

import pytest
import torch
from support.opchecks import check_loss

from camguide_fast import ops, reference

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 9, 3), (3, 20, 8, 11)]
OP = ops.local_consistency_loss
IMPLEMENTATIONS = {  # the row that the dispatcher chooses, and the twin as autograd differentiates it
    "op": OP,
    "reference": lambda f, window=7, eps=1e-5, valid=None: reference.local_consistency_loss(f, window, eps, valid),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def loss_of(request):
    return IMPLEMENTATIONS[request.param]


def maps(shape, dtype=torch.float64):
    """Signed, with all-zero pixels."""
    f = torch.randn(shape, dtype=dtype)
    return f * (torch.rand(shape[0], 1, *shape[2:]) > 0.2)


def brute_force(f, window, eps, valid):
    """The definition, pixel by pixel."""
    b, _, h, w = f.shape
    radius, total, n = window // 2, 0.0, 0
    for i in range(b):
        for y in range(h):
            for x in range(w):
                if valid is not None and not valid[i, 0, y, x]:
                    continue
                n += 1
                around = []
                for v in range(max(y - radius, 0), min(y + radius + 1, h)):
                    for u in range(max(x - radius, 0), min(x + radius + 1, w)):
                        if valid is None or valid[i, 0, v, u]:
                            around.append(f[i, :, v, u].clamp(min=0))
                around = torch.stack([a / (a.sum() + eps) for a in around]).mean(0)
                own = f[i, :, y, x].clamp(min=0)
                own = own / (own.sum() + eps)
                total += (1 - own @ around) * own.max()
    return total / max(n, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [1, 3, 7, 25])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition(loss_of, shape, window, masked):
    f = maps(shape)
    valid = torch.rand(shape[0], 1, *shape[2:]) > 0.3 if masked else None
    expected = torch.as_tensor(brute_force(f, window, 1e-5, valid), dtype=f.dtype)
    torch.testing.assert_close(loss_of(f, window, valid=valid), expected, rtol=1e-12, atol=1e-14)


def test_by_hand(loss_of):
    f = torch.tensor([[[[3.0, 1.0]], [[1.0, 0.0]]]], dtype=torch.float64)  # pixels (3, 1) and (1, 0)
    # K = (.75, .25), (1, 0); mean (.875, .125); S = .6875, .875; L = (.3125 * .75 + .125 * 1) / 2
    assert loss_of(f, 3, 1e-12).item() == pytest.approx(0.1796875)
    assert loss_of(f, 1, 1e-12).item() == pytest.approx((1 - 0.625) * 0.75 / 2)  # each pixel alone
    assert loss_of(torch.zeros(1, 2, 3, 3)).item() == 0
    assert loss_of(torch.ones(1, 1, 9, 9), eps=1e-12).item() == pytest.approx(
        0, abs=1e-6
    )  # one class everywhere agrees
    assert loss_of(torch.ones(1, 4, 9, 9), eps=1e-12).item() == pytest.approx(0.75 / 4)


def test_gradient(loss_of):
    f = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    f = (f + 0.01 * f.sign()).requires_grad_()  # away from the kink at 0
    valid = torch.rand(2, 1, 6, 5) > 0.3
    assert torch.autograd.gradcheck(lambda f: 3 * loss_of(f, 5), f)
    assert torch.autograd.gradcheck(lambda f: loss_of(f, 5, valid=valid), f)


def test_gradient_is_zero_at_negative_input_and_goes_to_the_first_of_equal_classes(loss_of):
    f = torch.tensor([-1.0, 0.0, 2.0, 2.0], dtype=torch.float64).view(1, 4, 1, 1).requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(f, 1, 1e-12), f)
    # K = (.5, .5), S = K.K = .5, L = (1 - S) max K: dL/dK = -.5 * 2 K + (.5, 0) = (0, -.5). Through the normalisation:
    # less <dL/dK, K> = -.25, divided by the sum 4
    torch.testing.assert_close(grad.flatten(), torch.tensor([0, 0, 0.0625, -0.0625], dtype=torch.float64))


def test_invalid_pixels_influence_nothing(loss_of):
    f = maps((2, 3, 8, 9), torch.float32).requires_grad_()
    valid = torch.ones(2, 1, 8, 9, dtype=torch.bool)
    valid[:, :, 5:], valid[:, :, :, 6:] = False, False
    poisoned = torch.where(valid, f, torch.nan)
    (expected,) = torch.autograd.grad(loss_of(f[:, :, :5, :6]), f)
    (grad,) = torch.autograd.grad(loss_of(poisoned, valid=valid), f)
    torch.testing.assert_close(loss_of(poisoned, valid=valid), loss_of(f[:, :, :5, :6]))
    torch.testing.assert_close(grad, expected)
    none = torch.zeros_like(valid)
    (grad,) = torch.autograd.grad(loss := loss_of(f, valid=none), f)
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_precision(loss_of, dtype, bound):
    f = maps((2, 20, 23, 31)).to(dtype)
    exact = f.double().requires_grad_()
    loss, expected = loss_of(f.requires_grad_()), loss_of(exact)
    (grad,), (exact_grad,) = torch.autograd.grad(loss * 1000, f), torch.autograd.grad(expected * 1000, exact)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item()
    assert (grad.double() - exact_grad).abs().max() <= bound * exact_grad.abs().max()


@pytest.mark.parametrize(
    "shape", [(1, 3, 130, 17), (2, 20, 70, 33), (1, 2, 1, 40), (1, 2, 40, 1), (1, 3, 3, 64)], ids=str
)
@pytest.mark.parametrize("window", [7, 5, 301])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_equals_the_twin_on_every_size(shape, window, masked, dtype, bound):
    f = maps(shape, dtype).requires_grad_()
    valid = torch.rand(shape[0], 1, *shape[2:]) > 0.3 if masked else None
    exact = f.detach().double().requires_grad_()
    loss, expected = OP(f, window, valid=valid), IMPLEMENTATIONS["reference"](exact, window, valid=valid)
    (grad,), (exact_grad,) = torch.autograd.grad(loss, f), torch.autograd.grad(expected, exact)
    assert abs(loss.item() - expected.item()) <= bound * expected.item()
    assert (grad.double() - exact_grad).abs().max() <= bound * exact_grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_precise_as_the_twin(dtype):
    f = maps((2, 20, 23, 31)).to(dtype)
    exact = f.double().requires_grad_()
    (expected,) = torch.autograd.grad(OP(exact) * 1000, exact)
    errors = {}
    for name, loss_of in IMPLEMENTATIONS.items():
        leaf = f.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(leaf) * 1000, leaf)
        errors[name] = (grad.double() - expected).norm()
    assert errors["op"] <= 2 * errors["reference"]


def test_same_bits(same_bits_on_any_threads):
    f, valid = maps((3, 5, 150, 37), torch.float32), torch.rand(3, 1, 150, 37) > 0.2
    op = torch.ops.camguide_fast.local_consistency_loss
    same_bits_on_any_threads(lambda: op(f, 7, 1e-5, None, True))
    same_bits_on_any_threads(lambda: op(f, 9, 1e-5, valid, True))


def test_fp16_gradient_survives_many_pixels():
    f = torch.rand(2, 2, 600, 600, dtype=torch.float16)  # 1/N = 1.4e-6, of which fp16 keeps four bits
    leaf, exact = f.clone().requires_grad_(), f.double().requires_grad_()
    (grad,) = torch.autograd.grad(OP(leaf) * 65536, leaf)
    (expected,) = torch.autograd.grad(OP(exact) * 65536, exact)
    assert (grad.double() - expected).norm() <= 1e-3 * expected.norm()


def test_same_in_every_way_of_calling():
    f = maps((2, 4, 9, 7), torch.float32)
    leaf = f.clone().requires_grad_()
    loss = OP(leaf)
    (grad,) = torch.autograd.grad(loss, leaf)
    strided = f.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    assert torch.equal(torch.autograd.grad(OP(strided), strided)[0], grad)  # also: twice the same, bit for bit
    assert torch.equal(OP(f), loss.detach())  # no gradient asked for
    with torch.no_grad():
        assert torch.equal(OP(leaf), loss.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OP(leaf), loss)
    torch.testing.assert_close(loss, reference.local_consistency_loss(f, 7, 1e-5, None))


def test_opcheck_and_compile():
    f, valid = maps((1, 2, 6, 7), torch.float32).requires_grad_(), torch.rand(1, 1, 6, 7) > 0.3
    op = torch.ops.camguide_fast.local_consistency_loss.default
    check_loss(op, f, 3, 1e-5, valid)
    check_loss(op, f, 3, 1e-5, None)
    compiled = torch.compile(lambda f: OP(f * 2, valid=valid), fullgraph=True)
    torch.testing.assert_close(compiled(f), OP(f * 2, valid=valid))
    torch.testing.assert_close(torch.autograd.grad(compiled(f), f), torch.autograd.grad(OP(f * 2, valid=valid), f))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features=torch.zeros(3, 4, 4)), "features must have 4"),
        (dict(features=torch.zeros(1, 2, 4, 4, dtype=torch.int32)), "features must be one of"),
        (dict(features=None), "features must be a tensor"),
        (dict(window=4), "window must be odd, got 4"),
        (dict(window=0), "window"),
        (dict(eps=0.0), "eps"),
        (dict(valid=torch.ones(1, 1, 4, 4)), "valid must be one of bool"),
        (dict(valid=torch.ones(1, 2, 4, 4, dtype=torch.bool)), "valid must have shape"),
    ],
)
def test_errors(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        OP(**(dict(features=torch.zeros(1, 2, 4, 4)) | change))
