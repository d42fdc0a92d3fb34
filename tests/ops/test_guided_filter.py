"""guided_filter: Eq. 19, the row that the dispatcher chooses and the twin."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from camguide_fast import ops, reference

IMPLEMENTATIONS = {
    "op": torch.ops.camguide_fast.guided_filter,
    "reference": reference.guided_filter,
}
SHAPES = [(1, 1, 1, 1), (1, 2, 1, 9), (2, 3, 5, 7), (1, 2, 9, 3), (2, 4, 23, 31), (1, 1, 17, 33)]
LARGE = (1, 2, 211, 530)  # several tiles in both directions, none of a vector's width


@pytest.fixture(params=IMPLEMENTATIONS)
def filtered(request):
    """(z, guide, radius, eps, adjoint) -> like z"""
    return IMPLEMENTATIONS[request.param]


def case(shape, dtype=torch.float64):
    b, k, h, w = shape
    return torch.randn(b, k, h, w, dtype=dtype), torch.rand(b, 3, h, w, dtype=dtype)


def brute_force(z, guide, radius, eps):
    """The definition, pixel by pixel (He et al., Eq. 14-16)."""
    b, k, h, w = z.shape
    total, count = torch.zeros_like(z), torch.zeros(h, w, dtype=z.dtype)
    for y in range(h):
        for x in range(w):
            ys, xs = slice(max(y - radius, 0), y + radius + 1), slice(max(x - radius, 0), x + radius + 1)
            for i in range(b):
                p, g = z[i, :, ys, xs].flatten(1), guide[i, :, ys, xs].flatten(1)
                dg = g - g.mean(1, keepdim=True)
                cov = dg @ dg.T / g.shape[1] + eps * torch.eye(3, dtype=z.dtype)
                a = torch.linalg.solve(cov, dg @ (p - p.mean(1, keepdim=True)).T / g.shape[1])  # [3, K]
                total[i, :, ys, xs] += ((a.T @ dg) + p.mean(1, keepdim=True)).reshape(total[i, :, ys, xs].shape)
            count[ys, xs] += 1
    return total / count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("radius", [1, 4, 40])
def test_equals_the_definition(filtered, shape, radius):
    z, guide = case(shape)
    result = filtered(z, guide, radius, 1e-2, False)
    torch.testing.assert_close(result, brute_force(z, guide, radius, 1e-2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 8, 20, 300])  # windows of one and of several levels of sums
@pytest.mark.parametrize("adjoint", [False, True])
def test_precision(radius, adjoint):
    z, guide = case(LARGE)
    result = torch.ops.camguide_fast.guided_filter(z.float(), guide.float(), radius, 1e-2, adjoint)
    exact = reference.guided_filter(z.float().double(), guide.float().double(), radius, 1e-2, adjoint)
    assert (result.double() - exact).abs().max() <= 2e-4 * exact.abs().max()


def guides():
    """Grey photographs saved as RGB, almost grey ones, and others that leave the covariance all but singular."""
    camera, coins, colour = (getattr(data, name)()[100:180, 100:200] for name in ("camera", "coins", "astronaut"))
    grey = torch.from_numpy(camera / 255)
    tint = grey + 1e-4 * torch.rand(3, *grey.shape, dtype=torch.float64)
    return {
        "camera": grey.expand(3, -1, -1),
        "coins": torch.from_numpy(coins / 255).expand(3, -1, -1),
        "astronaut": torch.from_numpy(colour / 255).permute(2, 0, 1),
        "almost grey": tint.clamp(max=1),
        "two colours": (grey > 0.5).double() * torch.tensor([0.9, 0.4, 0.1])[:, None, None],
        "flat beside dark": torch.cat([0.95 + 2e-3 * tint[..., :50], 0.03 * grey[:, 50:].expand(3, -1, -1)], 2),
        "constant": torch.full((3, 80, 100), 77 / 255, dtype=torch.float64),
    }


GUIDES = ("camera", "coins", "astronaut", "almost grey", "two colours", "flat beside dark", "constant")


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("radius", [1, 4, 20])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-4, 1e-2, 1e20])
def test_fp32_where_the_covariance_is_singular(filtered, name, radius, eps):
    """Forward and gradient within 1e-2 of fp64, and by far where eps is not the smallest."""
    guide = guides()[name].float()[None]
    maps = torch.cat([(guide[:, :1] > 0.47).float(), torch.rand(1, 1, *guide.shape[2:])], 1)
    for adjoint in (False, True):
        exact = reference.guided_filter(maps.double(), guide.double(), radius, eps, adjoint)
        error = (filtered(maps, guide, radius, eps, adjoint).double() - exact).abs().max()
        assert error <= (1e-5 if eps >= 1e-2 else 5e-3)


def test_gradient_over_a_grey_photograph():
    guide = guides()["camera"].float()[None]
    z = (guide[:, :1] > 0.47).float().requires_grad_()
    (got,) = torch.autograd.grad(ops.guided_filter(z, guide, 4, 1e-6).square().sum(), z)
    wide = z.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(ops.guided_filter(wide, guide.double(), 4, 1e-6).square().sum(), wide)
    assert (got.double() - exact).abs().max() <= 1e-2


@pytest.mark.parametrize("eps", [1e-6, 1e-2, 1e30])
def test_finite_input_stays_finite(filtered, eps):
    guide = guides()["camera"].float()[None]
    z = (guide[:, :1] > 0.47).float() * 1e20
    assert filtered(z, guide, 4, eps, False).isfinite().all() and filtered(z, guide, 4, eps, True).isfinite().all()


def test_a_smooth_guide_and_a_small_eps():
    """Where the variance in a window is small, what is left of the cancellation is divided by little."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 70), torch.linspace(0, 1, 90), indexing="ij")
    guide = torch.stack([0.8 + 0.05 * x, 0.9 - 0.05 * y, 0.85 + 0.02 * x * y])[None]
    z = torch.randn(1, 2, 70, 90) + 3
    exact = reference.guided_filter(z.double(), guide.double(), 4, 1e-4)
    assert (ops.guided_filter(z, guide, eps=1e-4).double() - exact).abs().max() <= 2e-4 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adjoint", [False, True])
def test_half_precision(filtered, dtype, adjoint):
    """Rounded twice, on the way in and out, and nowhere between."""
    z, guide = case((2, 4, 23, 31))
    z = z.to(dtype)
    result = filtered(z, guide.float(), 4, 1e-2, adjoint)
    assert result.dtype == dtype
    exact = reference.guided_filter(z.double(), guide.float().double(), 4, 1e-2, adjoint)
    assert (result.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("radius", [1, 4, 30])
def test_adjoint(filtered, radius):
    z, guide = case((2, 3, 23, 37))
    g = torch.randn_like(z)
    left = (g * filtered(z, guide, radius, 1e-2, False)).sum()
    torch.testing.assert_close(left, (filtered(g, guide, radius, 1e-2, True) * z).sum())


def test_same_bits_twice_and_on_any_number_of_threads():
    z, guide = case((3, 2, 150, 300), torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2, 5):
            torch.set_num_threads(n)
            results.append(ops.guided_filter(z, guide))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_autocast_changes_nothing():
    z, guide = case((2, 4, 23, 31), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.guided_filter(z, guide)
    assert torch.equal(inside, ops.guided_filter(z, guide))


def test_gradient():
    z, guide = case((2, 2, 6, 5))
    assert torch.autograd.gradcheck(lambda z: ops.guided_filter(z, guide, 2), z.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: ops.guided_filter(z, guide, 2), z)


def test_gradient_of_half_precision():
    z, guide = case((2, 4, 23, 31), torch.float32)
    z, g = z.half().requires_grad_(), torch.randn_like(z).half()
    (dz,) = torch.autograd.grad(ops.guided_filter(z, guide), z, g)
    exact = reference.guided_filter(g.double(), guide.double(), 4, 1e-2, adjoint=True)
    assert dz.dtype == torch.float16
    assert (dz.double() - exact).abs().max() <= 1e-3 * exact.abs().max()


@pytest.mark.parametrize("adjoint", [False, True])
def test_opcheck(adjoint):
    z, guide = case((1, 2, 6, 7), torch.float32)
    arguments = (z.requires_grad_(), guide, 2, 1e-2, adjoint)
    torch.library.opcheck(torch.ops.camguide_fast.guided_filter.default, arguments)


def test_compile():
    z, guide = case((1, 2, 6, 7), torch.float32)
    compiled = torch.compile(lambda z: ops.guided_filter(z, guide) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(z), ops.guided_filter(z, guide) * 2)


def test_strides_and_uint8():
    z, guide = case((2, 4, 23, 31), torch.float32)
    expected = ops.guided_filter(z, guide)
    strided = z.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(ops.guided_filter(strided, guide.to(memory_format=torch.channels_last)), expected)
    bytes_ = (guide * 255).round().to(torch.uint8)
    torch.testing.assert_close(ops.guided_filter(z, bytes_), ops.guided_filter(z, bytes_.float() / 255))


def test_identities():
    _, guide = case((1, 1, 20, 20))
    torch.testing.assert_close(ops.guided_filter(torch.full_like(guide, 3.5), guide), torch.full_like(guide, 3.5))
    torch.testing.assert_close(
        ops.guided_filter(guide, guide, eps=1e-12), guide, atol=1e-6, rtol=0
    )  # the guide explains itself
    z, flat = torch.randn(1, 1, 20, 20, dtype=torch.float64), torch.full_like(guide, 0.3)
    mean = reference._common.window_mean
    torch.testing.assert_close(ops.guided_filter(z, flat), mean(mean(z, 4), 4))  # a flat guide leaves two box means


def test_interior_equals_opencv(images):
    """OpenCV reflects at the border, so only pixels two radii inside are compared."""
    image = cv2.cvtColor(cv2.imread(str(images / "cat.bmp")), cv2.COLOR_BGR2RGB).astype(np.float32) / 255
    grey = image.mean(2)
    theirs = cv2.ximgproc.guidedFilter(image, grey, 4, 1e-2)
    ours = ops.guided_filter(torch.from_numpy(grey)[None, None], torch.from_numpy(image).permute(2, 0, 1)[None])[
        0, 0
    ].numpy()
    np.testing.assert_allclose(ours[8:-8, 8:-8], theirs[8:-8, 8:-8], atol=2e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(z=torch.zeros(3, 4, 4)), "z must have 4"),
        (dict(z=torch.zeros(1, 2, 4, 4, dtype=torch.int32)), "z must be one of"),
        (dict(guide=torch.zeros(1, 1, 4, 4)), "guide must be RGB"),
        (dict(guide=torch.zeros(1, 3, 5, 4)), "guide must have shape"),
        (dict(guide=torch.zeros(1, 3, 4, 4, requires_grad=True)), "guide requires grad"),
        (dict(radius=0), "radius"),
        (dict(eps=0.0), "eps"),
        (dict(eps=1e-7), r"eps must be in \[1e-06, 1e\+30\] for z in float32 \(z.double\(\) goes down"),
        (
            dict(z=torch.zeros(1, 2, 4, 4).double(), eps=1e-13),
            r"eps must be in \[1e-12, 1e\+30\] for z in float64, got",
        ),
        (dict(eps=1e31), r"eps must be in .* for z in float32, got 1e\+31"),
        (dict(guide=torch.full((1, 3, 4, 4), 255.0)), r"guide must be in \[0, 1\], or uint8; got values from 255"),
    ],
)
def test_errors(change, message):
    arguments = dict(z=torch.zeros(1, 2, 4, 4), guide=torch.zeros(1, 3, 4, 4)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.guided_filter(**arguments)
