"""edge_consistency_loss: Eq. 30-34."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.edge_consistency import DEFAULTS, IMPLEMENTATIONS, OP, case, twin
from support.opchecks import check_loss

from camguide_fast import ops, reference

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 9, 3), (3, 6, 12, 11)]


@pytest.fixture(params=IMPLEMENTATIONS)
def loss_of(request):
    return IMPLEMENTATIONS[request.param]


def opencv_edges(plane):
    """Scharr norm of the blurred plane by OpenCV's filters."""
    blurred = cv2.GaussianBlur(np.ascontiguousarray(plane), (5, 5), 1.5, borderType=cv2.BORDER_REPLICATE)
    gx = cv2.Scharr(blurred, cv2.CV_64F, 1, 0, borderType=cv2.BORDER_REPLICATE)
    gy = cv2.Scharr(blurred, cv2.CV_64F, 0, 1, borderType=cv2.BORDER_REPLICATE)
    return np.hypot(gx, gy)


def brute_force(cam, support, label, tau, delta, gamma, tau_hard, lambda_hard):
    """The definition, plane by plane and pixel by pixel."""
    focal, hard, n = 0.0, 0.0, 0
    b, k, h, w = cam.shape
    for i in range(b):
        for c in range(k):
            if not label[i, c] > 0:
                continue
            m = opencv_edges(cam[i, c].double().numpy())
            e = m / max(m.max(), 1e-12)
            for y in range(h):
                for x in range(w):
                    s = float(support[i, 0, y, x])
                    if s >= tau:
                        continue
                    n += 1
                    u = max(e[y, x] - (s + delta), 0.0)
                    focal += u**gamma
                    hard += u * (e[y, x] > tau_hard)
    return torch.tensor((focal + lambda_hard * hard) / max(n, 1), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [DEFAULTS, dict(tau=0.05, delta=0.0, gamma=1.5, tau_hard=0.6, lambda_hard=0.5)])
def test_equals_the_definition(loss_of, shape, options):
    cam, support, label = case(shape)
    loss = loss_of(cam, support, label, **options)
    torch.testing.assert_close(loss, brute_force(cam, support, label, **options), rtol=1e-10, atol=1e-12)


def test_by_hand(loss_of):
    cam = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    cam[..., 8:] = 1  # a straight step: Gaussian taps g0, g1, g2 leave slopes over six columns
    g = torch.exp(-(torch.arange(3.0, dtype=torch.float64) ** 2) / 4.5)
    slope = torch.stack([g[0] + g[1], g[1] + g[2], g[2]]) / (g[0] + g[1])  # E at columns 7, 6, 5 (and 8, 9, 10)
    flat = torch.zeros(1, 1, 16, 16)
    u = slope - 0.05
    hard = u[slope > 0.35].sum()
    expected = (2 * 16 * (u**2).sum() + 2 * (2 * 16 * hard)) / 256
    torch.testing.assert_close(loss_of(cam, flat, torch.ones(1, 1)), expected)
    edge = flat.clone()
    edge[..., 4:12] = 0.1  # not < tau: the image explains the edge
    assert loss_of(cam, edge, torch.ones(1, 1)) == 0
    half = flat.clone()
    half[..., 8:] = 0.5  # the right half leaves the sum and N alike
    torch.testing.assert_close(loss_of(cam, half, torch.ones(1, 1)), expected)
    torch.testing.assert_close(loss_of(cam * 7, flat, torch.ones(1, 1)), expected)  # E has no scale


def test_gradient_with_the_maximum_held(loss_of):
    """gradcheck sees the maximum move, backward detaches it: a step beyond the counted pixels holds it."""
    cam, support, label = case((2, 2, 6, 12))
    cam[..., 11:], support[..., 5:] = 8, 1
    left = cam[..., :6].clone().requires_grad_()

    def loss(left):
        return 300 * loss_of(torch.cat([left, cam[..., 6:]], 3), support * 0.1, label, delta=0.0, tau_hard=1e-3)

    assert torch.autograd.gradcheck(loss, left)
    assert torch.autograd.grad(loss(left), left)[0].abs().max() > 0.1


def test_the_maximum_is_detached(loss_of):
    cam, support, label = case((1, 1, 8, 8))
    cam.requires_grad_()
    m = reference._filters.scharr_norm(reference._filters.gaussian(cam, 5, 1.5))
    e = m / m.max().detach()
    u = torch.where(support < 0.1, (e - support - 0.05).relu(), 0)
    expected = ((u**2).sum() + 2 * (u * (e > 0.35)).sum()) / (support < 0.1).sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss_of(cam, support, label), cam), torch.autograd.grad(expected, cam)
    )


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_flat_maps_cost_nothing(loss_of, value, dtype):
    """Rounding must not turn a constant into edges, which division by their maximum would make full ones."""
    cam = torch.full((2, 2, 13, 37), value, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(loss := loss_of(cam, torch.zeros(2, 1, 13, 37), torch.ones(2, 2)), cam)
    assert loss == 0 and not grad.any()


def test_no_nan_where_the_norm_is_zero(loss_of):
    cam = torch.zeros(1, 1, 20, 20)
    cam[..., 10, 10] = 1
    cam.requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(cam, torch.zeros(1, 1, 20, 20), torch.ones(1, 1)), cam)
    assert grad.isfinite().all() and grad.any()


def test_inactive_classes_are_never_touched(loss_of):
    cam, support, label = case((3, 4, 9, 8))
    absent = ~label[:, :, None, None].expand_as(cam)
    expected = torch.autograd.grad(clean := loss_of(cam.requires_grad_(), support, label), cam)[0]
    poisoned = torch.where(absent, torch.nan, cam).detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss := loss_of(poisoned, support, label), poisoned)
    assert torch.equal(loss, clean) and torch.equal(grad, expected) and not grad[absent].any()
    assert loss_of(torch.where(absent, cam, torch.nan), support, label).isnan()  # but a NaN that counts is not hidden


def test_nothing_counts(loss_of):
    cam, support, label = case((2, 3, 6, 6), torch.float32)
    cam.requires_grad_()
    nowhere = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    for s, y, v in [(support, label & False, None), (support + 1, label, None), (support, label, nowhere)]:
        (grad,) = torch.autograd.grad(loss := loss_of(cam, s, y, valid=v), cam)
        assert loss == 0 and grad.shape == cam.shape and not grad.any()


def test_invalid_pixels_influence_nothing():
    cam, support, label = case((2, 3, 16, 18))
    valid = torch.ones(2, 1, 16, 18, dtype=torch.bool)
    valid[:, :, 12:], valid[:, :, :, 15:] = False, False
    cam = torch.where(valid, cam, 100 * torch.rand_like(cam)).requires_grad_()
    (grad,) = torch.autograd.grad(loss := OP(cam, support, label, valid=valid), cam)
    assert loss > 0 and not torch.where(valid, 0, grad).any()
    poisoned = torch.where(valid, cam, torch.nan).detach().requires_grad_()
    assert torch.equal(OP(poisoned, torch.where(valid, support, torch.nan), label, valid=valid), loss)
    assert torch.equal(torch.autograd.grad(OP(poisoned, support, label, valid=valid), poisoned)[0], grad)
    # the pixels three away from the padding are those that count; M, E and the sums over them by the definition
    total, n = 0.0, 0
    for i, k in label.nonzero().tolist():
        m = opencv_edges(cam[i, k].detach().numpy())[:9, :12]
        for e, s in zip((m / m.max()).flat, support[i, 0, :9, :12].flatten().tolist(), strict=True):
            u = max(e - s - 0.05, 0) * (s < 0.1)
            total, n = total + u**2 + 2 * u * (e > 0.35), n + (s < 0.1)
    assert loss.item() == pytest.approx(total / n, rel=1e-9)
    assert torch.equal(OP(cam, support, label, valid=torch.ones_like(valid)), OP(cam, support, label))


def test_masks_are_strict(loss_of):
    cam, support, label = case((1, 1, 12, 40), torch.float32)
    support[..., :20] = torch.tensor(0.1)  # tau in fp32: not below it
    label[:] = True
    n = (support < 0.1).sum()
    assert (
        n < 12 * 20
        and 1 / torch.ops.camguide_fast.edge_consistency_loss(cam, support, label, *DEFAULTS.values(), None, False)[2]
        == n
    )
    free = loss_of(cam, support * 0, label, lambda_hard=0.0)
    assert loss_of(cam, support * 0, label, tau_hard=1.0, lambda_hard=5.0) == free  # the largest E is 1, and not > 1
    assert loss_of(cam, support * 0, label, tau_hard=0.999999, lambda_hard=5.0) > free


def test_same_in_every_way_of_calling():
    cam, support, label = case((2, 4, 9, 7), torch.float32)
    leaf = cam.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss := OP(leaf, support, label), leaf)
    strided = cam.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    again = OP(strided, support.transpose(2, 3).contiguous().transpose(2, 3), label.float() * 0.5)
    assert torch.equal(torch.autograd.grad(again, strided)[0], grad)  # also: twice the same, bit for bit
    assert torch.equal(OP(cam, support, label.int()), loss.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OP(leaf, support, label), loss)
    torch.testing.assert_close(loss.detach(), twin(cam, support, label))


def test_opcheck_and_compile():
    cam, support, label = case((2, 3, 6, 7), torch.float32)
    cam.requires_grad_()
    op, numbers = torch.ops.camguide_fast.edge_consistency_loss.default, DEFAULTS.values()
    valid = torch.ones(2, 1, 6, 7, dtype=torch.bool)
    check_loss(op, cam, support, label, *numbers, valid)
    check_loss(op, cam, support, label, *numbers, None)
    compiled = torch.compile(lambda cam: OP(cam * 2, support, label), fullgraph=True)
    torch.testing.assert_close(compiled(cam), OP(cam * 2, support, label))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(cam), cam), torch.autograd.grad(OP(cam * 2, support, label), cam)
    )


def contour_and_moved(image, mask, shift):
    """The loss of a CAM that is the object's mask, at a quarter of the size: in its place, and `shift` cells off."""
    size = (image.shape[2] // 4, image.shape[3] // 4)
    support = ops.edge_support(image, size)
    cam = torch.nn.functional.interpolate(mask, size, mode="area")
    moved = torch.roll(cam, shift, (2, 3))
    return (OP(x, support, torch.ones(1, 1)).item() for x in (cam, moved))


def test_meaning_on_a_generated_image():
    """A disc, slightly out of focus, on a shaded and grainy ground."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    distance = 50 - ((y - 80) ** 2 + (x - 80) ** 2).sqrt()
    disc = (distance / 3).sigmoid() * torch.tensor([70.0, -40.0, 20.0])[:, None, None]
    image = (90 + 0.1 * y + 6 * torch.randn(1, 3, 256, 256) + disc).clamp(0, 255).byte()
    contour, moved = contour_and_moved(image, (distance > 0).float()[None, None], (22, 22))
    assert contour < 1e-3 and moved > 0.05


def test_meaning_on_a_photograph(voc):
    """A horse on a meadow, and its contour moved down and left into the grass."""
    name = "2008_004175"
    image = torch.from_numpy(np.array(Image.open(voc / "JPEGImages" / f"{name}.jpg"))).permute(2, 0, 1)[None]
    classes = np.array(Image.open(voc / "SegmentationClass" / f"{name}.png"))
    mask = torch.from_numpy((classes > 0) & (classes < 255)).float()[None, None]
    contour, moved = contour_and_moved(image, mask, (12, -32))
    assert contour < 1e-3 and moved > 0.05


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(cam=torch.zeros(2, 4, 4)), "cam must have 4"),
        (dict(cam=torch.zeros(1, 2, 4, 4, dtype=torch.uint8)), "cam must be one of"),
        (dict(support=torch.zeros(1, 2, 4, 4)), "support must have shape"),
        (dict(support=torch.zeros(1, 1, 4, 4, requires_grad=True)), "support requires grad"),
        (dict(label=torch.ones(2, 1)), "label"),
        (dict(gamma=0.5), "gamma"),
        (dict(lambda_hard=-1.0), "lambda_hard"),
        (dict(tau=None), "tau"),
        (dict(valid=torch.ones(1, 1, 4, 4)), "valid must be one of bool"),
    ],
)
def test_errors(change, message):
    arguments = dict(cam=torch.zeros(1, 2, 4, 4), support=torch.zeros(1, 1, 4, 4), label=torch.ones(1, 2))
    with pytest.raises((ValueError, TypeError), match=message):
        OP(**(arguments | change))
