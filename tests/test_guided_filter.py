"""guided_filter: Eq. 19."""

import cv2
import numpy as np
import pytest
import torch

from camguide_fast import ops, reference

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 9, 3), (2, 4, 23, 31)]


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
def test_equals_the_definition(shape, radius):
    z, guide = case(shape)
    torch.testing.assert_close(
        ops.guided_filter(z, guide, radius, 1e-2), brute_force(z, guide, radius, 1e-2), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 2e-4), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_precision(dtype, bound):
    z, guide = case((2, 4, 23, 31))
    z = z.to(dtype).double()
    out = ops.guided_filter(z.to(dtype), guide.float())
    assert out.dtype == dtype
    exact = reference.guided_filter(z, guide.float().double(), 4, 1e-2)
    assert (out.double() - exact).abs().max() <= bound * exact.abs().max()


def test_autocast_changes_nothing():
    z, guide = case((2, 4, 23, 31), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.guided_filter(z, guide)
    assert torch.equal(inside, ops.guided_filter(z, guide))


def test_gradient():
    z, guide = case((2, 2, 6, 5))
    assert torch.autograd.gradcheck(lambda z: ops.guided_filter(z, guide, 2), z.requires_grad_())


def test_opcheck_and_compile():
    z, guide = case((1, 2, 6, 7), torch.float32)
    torch.library.opcheck(torch.ops.camguide_fast.guided_filter.default, (z.requires_grad_(), guide, 2, 1e-2, False))
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
    ],
)
def test_errors(change, message):
    arguments = dict(z=torch.zeros(1, 2, 4, 4), guide=torch.zeros(1, 3, 4, 4)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.guided_filter(**arguments)
