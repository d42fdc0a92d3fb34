"""target_nll: Eq. 27."""

import math

import pytest
import torch
from support.opchecks import check_loss

from camguide_fast import ops, reference

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 20, 8, 11)]
OP = ops.target_nll


def twin(cam, target, label, ignore=255, smooth=0.01, balance=False):
    """As autograd differentiates it."""
    return reference.target_nll(cam, target, label, ignore, smooth, balance)


IMPLEMENTATIONS = {"op": OP, "reference": twin}  # the row that the dispatcher chooses, and the twin


@pytest.fixture(params=IMPLEMENTATIONS)
def loss_of(request):
    return IMPLEMENTATIONS[request.param]


def case(shape, dtype=torch.float64):
    b, k, h, w = shape
    label = torch.rand(b, k) < 0.4
    label[:, 0] = True
    target = torch.randint(0, k + 1, (b, h, w))
    target[torch.rand(b, h, w) < 0.2] = 255
    return torch.rand(shape, dtype=dtype) * 0.98 + 0.01, target, label.float()


def brute_force(cam, target, label, ignore=255, smooth=0.01, balance=False):
    """The definition, pixel by pixel."""
    losses = {"background": [], "foreground": []}
    b, k, h, w = cam.shape
    for i in range(b):
        present = [c for c in range(k) if label[i, c] > 0]
        if not present:
            continue
        for y in range(h):
            for x in range(w):
                t = int(target[i, y, x])
                if t == ignore or (t > 0 and t - 1 not in present):
                    continue
                v = [float(cam[i, c, y, x]) for c in present]
                v = [1 - max(v), *v]
                p = v[0 if t == 0 else 1 + present.index(t - 1)] / sum(v)
                loss = -math.log((p + smooth) / (1 + smooth * len(v)))
                losses["foreground" if t else "background"].append(loss)
    groups = list(losses.values()) if balance else [losses["background"] + losses["foreground"]]
    means = [sum(g) / len(g) for g in groups if g]
    return torch.tensor(sum(means) / max(len(means), 1), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("smooth", [1e-2, 1e-5])
def test_equals_the_definition(loss_of, shape, balance, smooth):
    cam, target, label = case(shape)
    label[-1] = label[-1] if len(label) == 1 else 0  # an image without classes
    expected = brute_force(cam, target, label, smooth=smooth, balance=balance)
    torch.testing.assert_close(loss_of(cam, target, label, 255, smooth, balance), expected, rtol=1e-12, atol=1e-14)


def test_by_hand(loss_of):
    cam = torch.tensor([0.6, 0.2, 0.9], dtype=torch.float64).view(1, 3, 1, 1)  # the third is absent
    label = torch.tensor([[1, 1, 0]])

    def loss(target, **options):
        return loss_of(cam, torch.full((1, 1, 1), target), label, **options).item()

    # v = (.4, .6, .2), sum 1.2
    assert loss(0) == pytest.approx(-math.log((0.4 / 1.2 + 0.01) / 1.03))
    assert loss(1) == pytest.approx(-math.log((0.6 / 1.2 + 0.01) / 1.03))
    assert loss(2, smooth=1e-5) == pytest.approx(-math.log((0.2 / 1.2 + 1e-5) / (1 + 3e-5)))
    assert loss(3) == 0 and loss(255) == 0 and loss(7, ignore=7) == 0


def test_balance(loss_of):
    cam = torch.tensor([0.9, 0.2, 0.3, 0.4], dtype=torch.float64).view(1, 1, 1, 4)
    target, label = torch.tensor([[[1, 0, 0, 0]]]), torch.ones(1, 1)
    one = [-math.log((p + 0.01) / 1.02) for p in (0.9, 0.8, 0.7, 0.6)]
    assert loss_of(cam, target, label).item() == pytest.approx(sum(one) / 4)
    assert loss_of(cam, target, label, balance=True).item() == pytest.approx((one[0] + sum(one[1:]) / 3) / 2)
    target[0, 0, 0] = 255  # background alone: its mean, not half of it
    assert loss_of(cam, target, label, balance=True).item() == pytest.approx(sum(one[1:]) / 3)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("smooth", [1e-2, 1e-5])
def test_gradient(loss_of, balance, smooth):
    cam, target, label = case((2, 4, 5, 4))
    assert torch.autograd.gradcheck(
        lambda cam: 3 * loss_of(cam, target, label, 255, smooth, balance), cam.requires_grad_()
    )


def test_nothing_counts(loss_of):
    cam, target, label = case((2, 3, 4, 4), torch.float32)
    cam.requires_grad_()
    for t, y in [(torch.full_like(target, 255), label), (target, label * 0), (torch.full_like(target, 3), label * 0)]:
        for balance in (False, True):
            (grad,) = torch.autograd.grad(loss := loss_of(cam, t, y, balance=balance), cam)
            assert loss == 0 and grad.shape == cam.shape and not grad.any()


def test_what_does_not_count_is_not_read(loss_of):
    cam, target, label = case((2, 3, 6, 5))
    label[:, 1], label[1, 2] = 0, 1
    counts = (target == 0) | (
        (target < 255) & label.gather(1, (target - 1).clamp(0, 2).flatten(1)).view_as(target).bool()
    )
    used = counts[:, None] & (label > 0)[:, :, None, None]
    expected = torch.autograd.grad(clean := loss_of(cam.requires_grad_(), target, label), cam)[0]
    poisoned = torch.where(used, cam, torch.nan).detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss := loss_of(poisoned, target, label), poisoned)
    torch.testing.assert_close(loss, clean)
    torch.testing.assert_close(grad, expected)
    assert not grad[~used].any() and grad[used].any()
    bad = torch.where(used, torch.nan, cam)
    assert loss_of(bad, target, label).isnan()  # but a NaN that counts is not hidden


def test_outside_the_range_and_ties(loss_of):
    cam = torch.tensor([1.5, -0.5], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    for target in range(3):
        (grad,) = torch.autograd.grad(loss := loss_of(cam, torch.full((1, 1, 1), target), torch.ones(1, 2)), cam)
        p = (0, 1, 0)[target]  # as (1, 0)
        assert loss.item() == pytest.approx(-math.log((p + 0.01) / 1.03)) and not grad.any()
    tie = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(tie, torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([[0, 1, 1]])), tie)
    # v0 = 1 - c1 with c1 the first present class; sum = 1 - c1 + c1 + c2; p = .5 / 1.5
    assert grad.flatten()[0] == 0
    torch.testing.assert_close(grad.flatten()[1].item(), 1 / 1.5 / (0.5 / 1.5 + 0.01))
    torch.testing.assert_close(grad.flatten()[2].item(), 0.5 / 1.5**2 / (0.5 / 1.5 + 0.01))


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("smooth", [1e-2, 1e-5])
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
def test_precision(dtype, bound, smooth, balance):
    cam, target, label = case((2, 20, 23, 31))
    cam[:, :, ::3] = 0  # contradicted by many targets: gradients up to 1 / smooth
    cam = cam.to(dtype)
    exact = cam.double().requires_grad_()
    loss, expected = (OP(x, target, label, 255, smooth, balance) for x in (cam.requires_grad_(), exact))
    (grad,), (exact_grad,) = torch.autograd.grad(loss, cam), torch.autograd.grad(expected, exact)
    assert loss.dtype == torch.float32 and grad.dtype == dtype and grad.isfinite().all()
    assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item()
    assert (grad.double() - exact_grad).abs().max() <= bound * exact_grad.abs().max()
    assert (grad.double() - exact_grad).norm() <= 3 * bound * exact_grad.norm()


@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (1, 20, 1, 40), (3, 2, 50, 41), (1, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_equals_the_twin_on_every_size(shape, balance, dtype, bound):
    cam, target, label = case(shape, dtype)
    cam[..., ::3], cam[..., 1::5] = 0, 1.5
    label[-1] = 0 if len(label) > 2 else 1
    exact = cam.double().requires_grad_()
    loss = OP(cam.requires_grad_(), target, label, balance=balance)
    expected = twin(exact, target, label, balance=balance)
    (grad,), (exact_grad,) = torch.autograd.grad(loss, cam), torch.autograd.grad(expected, exact)
    assert abs(loss.item() - expected.item()) <= bound * expected.item()
    assert (grad.double() - exact_grad).abs().max() <= bound * exact_grad.abs().max()


def test_precise_logarithm():
    """Losses from the smallest to the largest, each alone: a mean would hide a wrong one."""
    cam = torch.cat([torch.linspace(0, 1, 33), 1 - torch.logspace(-7, -1, 13)]).view(-1, 1, 1, 1)
    for smooth in (1e-5, 0.01):
        for target in (0, 1):
            for c in cam.split(1):
                t = torch.full((1, 1, 1), target)
                expected = twin(c.double(), t, torch.ones(1, 1), smooth=smooth).item()
                assert OP(c, t, torch.ones(1, 1), smooth=smooth).item() == pytest.approx(expected, rel=1e-5, abs=2e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_precise_as_the_twin(dtype):
    cam, target, label = case((2, 20, 23, 31))
    cam = cam.to(dtype)
    exact = cam.double().requires_grad_()
    (expected,) = torch.autograd.grad(twin(exact, target, label) * 100, exact)
    errors = {}
    for name, loss_of in IMPLEMENTATIONS.items():
        leaf = cam.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(leaf, target, label) * 100, leaf)
        errors[name] = (grad.double() - expected).norm()
    assert errors["op"] <= 2 * errors["reference"]


def test_same_bits(same_bits_on_any_threads):
    cam, target, label = case((3, 5, 150, 137), torch.float32)
    op = torch.ops.camguide_fast.target_nll
    for balance in (False, True):
        same_bits_on_any_threads(lambda b=balance: op(cam, target, label, 255, 0.01, b, True))


def test_dtypes_strides_and_repeat():
    cam, target, label = case((2, 4, 9, 7), torch.float32)
    leaf = cam.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss := OP(leaf, target, label), leaf)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(OP(cam, target.to(dtype), label.bool()), loss.detach())
    strided = cam.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    out = OP(strided, target.transpose(1, 2).contiguous().transpose(1, 2), label.int())
    assert torch.equal(torch.autograd.grad(out, strided)[0], grad)  # also: twice the same, bit for bit
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OP(leaf, target, label), loss)
    torch.testing.assert_close(loss.detach(), reference.target_nll(cam, target, label, 255, 0.01, False))


def test_opcheck_and_compile():
    cam, target, label = case((2, 3, 4, 5), torch.float32)
    cam.requires_grad_()
    op = torch.ops.camguide_fast.target_nll.default
    check_loss(op, cam, target, label, 255, 0.01, True)
    check_loss(op, cam, target, label, 255, 0.01, False)
    compiled = torch.compile(lambda cam: OP(cam * 0.9, target, label), fullgraph=True)
    torch.testing.assert_close(compiled(cam), OP(cam * 0.9, target, label))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(cam), cam), torch.autograd.grad(OP(cam * 0.9, target, label), cam)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(cam=torch.zeros(2, 4, 4)), "cam must have 4"),
        (dict(target=torch.zeros(1, 4, 4)), "target must be one of"),
        (dict(target=torch.zeros(1, 1, 4, 4, dtype=torch.int64)), "target must have 3"),
        (dict(target=torch.zeros(1, 4, 5, dtype=torch.int64)), "target must have shape"),
        (dict(target=torch.full((1, 4, 4), 3)), r"target must hold 0\.\.2 .* got 3"),
        (dict(target=torch.full((1, 4, 4), -1)), "target must hold"),
        (dict(label=torch.ones(1, 3)), "label"),
        (dict(smooth=0), "smooth"),
    ],
)
def test_errors(change, message):
    arguments = dict(
        cam=torch.zeros(1, 2, 4, 4), target=torch.zeros(1, 4, 4, dtype=torch.int64), label=torch.ones(1, 2)
    )
    with pytest.raises((ValueError, TypeError), match=message):
        OP(**(arguments | change))
