"""edge_support: the image branch of section I.3."""

import cv2
import numpy as np
import pytest
import torch

from camguide_fast import ops, reference

SHAPES = [
    ((1, 1), (1, 1)),
    ((5, 7), (2, 3)),
    ((23, 31), (6, 8)),
    ((40, 32), (10, 8)),
    ((3, 3), (5, 4)),
    ((197, 65), (50, 7)),
]
IMPLEMENTATIONS = {"op": ops.edge_support, "reference": reference.edge_support}  # the dispatcher's choice, and the twin


@pytest.fixture(params=IMPLEMENTATIONS)
def support_of(request):
    return IMPLEMENTATIONS[request.param]


def image_of(height, width, batch=2):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def opencv(image, size):
    """The same pipeline with OpenCV's filters, the pooling by its definition."""
    out = np.zeros((len(image), 1, *size))
    for i, rgb in enumerate(image.permute(0, 2, 3, 1).double().numpy()):
        edge = np.zeros(rgb.shape[:2])
        for c in range(3):
            blurred = cv2.GaussianBlur(np.ascontiguousarray(rgb[:, :, c]), (9, 9), 3, borderType=cv2.BORDER_REPLICATE)
            gx = cv2.Scharr(blurred, cv2.CV_64F, 1, 0, borderType=cv2.BORDER_REPLICATE)
            gy = cv2.Scharr(blurred, cv2.CV_64F, 0, 1, borderType=cv2.BORDER_REPLICATE)
            edge += np.hypot(gx, gy) / 3
        edge = cv2.dilate(edge / max(edge.max(), 1e-12), np.ones((3, 3), np.uint8))
        h, w = edge.shape
        for y in range(size[0]):
            for x in range(size[1]):
                rows = slice(y * h // size[0], -(-(y + 1) * h // size[0]))
                columns = slice(x * w // size[1], -(-(x + 1) * w // size[1]))
                out[i, 0, y, x] = edge[rows, columns].mean()
    return torch.from_numpy(out)


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_equals_opencv(support_of, shape, size):
    image = image_of(*shape)
    support = support_of(image, size)
    assert support.dtype == torch.float32
    torch.testing.assert_close(support.double(), opencv(image, size), rtol=1e-5, atol=1e-6)


def test_equals_opencv_on_photographs(support_of, images):
    for name in ("cat.bmp", "toy.bmp"):
        rgb = torch.from_numpy(cv2.cvtColor(cv2.imread(str(images / name)), cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None]
        size = (rgb.shape[2] // 4, rgb.shape[3] // 4)
        torch.testing.assert_close(support_of(rgb, size).double(), opencv(rgb, size), rtol=1e-5, atol=1e-6)


def test_by_hand(support_of):
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 1
    support = support_of(image, (32, 32))
    torch.testing.assert_close(
        support[..., 14:18], torch.ones(1, 1, 32, 4)
    )  # strongest on both sides of the step (blur is even), dilated by one
    torch.testing.assert_close(support, support[:, :, :1].expand_as(support))  # the border adds nothing along the step
    torch.testing.assert_close(support, support.flip(3))
    assert not support[..., :10].any()  # blur 4 + Scharr 1 + dilation 1 away
    # one Gaussian tap further: the slope over two pixels is g(1) + g(2) there, against g(0) + g(1) at the step
    g = torch.exp(-(torch.arange(3.0) ** 2) / 18)
    torch.testing.assert_close(support[0, 0, 0, 13], (g[1] + g[2]) / (g[0] + g[1]))


def test_constant_images_and_scale(support_of):
    for size in [(64, 48), (1, 1), (13, 9)]:
        assert not support_of(torch.full((2, 3, *size), 0.3), (4, 4)).any()
    image = image_of(20, 24)
    torch.testing.assert_close(support_of(image.float() / 255, (5, 6)), support_of(image, (5, 6)))
    torch.testing.assert_close(support_of(image.float() / 510, (5, 6)), support_of(image, (5, 6)))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        wide = (image.float() / 255).to(dtype)
        torch.testing.assert_close(support_of(wide, (5, 6)), support_of(wide.float(), (5, 6)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(support_of(image, (5, 6)), support_of(image, [5, 6]))


def test_strides_batch_and_repeat():
    image = image_of(20, 24)
    support = ops.edge_support(image, (5, 6))
    assert torch.equal(ops.edge_support(image.contiguous(memory_format=torch.channels_last), (5, 6)), support)
    assert torch.equal(torch.cat([ops.edge_support(one[None], (5, 6)) for one in image]), support)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_twin_in_fp64(dtype):
    image = image_of(150, 83) if dtype == torch.uint8 else torch.rand(2, 3, 150, 83).to(dtype)
    exact = image.double() / 255 if dtype == torch.uint8 else image.double()
    expected = reference.edge_support(exact, (37, 21))
    torch.testing.assert_close(ops.edge_support(image, (37, 21)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1, 77, 254, 255])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 100])
def test_a_constant_has_no_edge_in_any_lane(value, width):
    for image in (torch.full((1, 3, 70, width), value, dtype=torch.uint8), torch.full((1, 3, 70, width), value / 255)):
        assert not ops.edge_support(image, (7, width)).any()


def test_same_bits(same_bits_on_any_threads):
    image = image_of(200, 117, batch=3)
    same_bits_on_any_threads(lambda: [ops.edge_support(image, (50, 29))])


def test_opcheck_and_compile():
    image = image_of(12, 10)
    torch.library.opcheck(torch.ops.camguide_fast.edge_support.default, (image, [3, 5]))
    compiled = torch.compile(lambda image, like: ops.edge_support(image, like.shape[2:]) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(image, torch.zeros(2, 1, 3, 5)), ops.edge_support(image, (3, 5)) * 2)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image=torch.zeros(1, 1, 4, 4)), "image must be RGB"),
        (dict(image=torch.zeros(3, 4, 4)), "image must have 4"),
        (dict(image=torch.zeros(1, 3, 4, 4, dtype=torch.int32)), "image must be one of"),
        (dict(image=torch.full((1, 3, 4, 4), torch.nan)), "image holds NaN"),
        (dict(image=torch.zeros(1, 3, 4, 4, requires_grad=True)), "image requires grad"),
        (dict(size=(4,)), "size must be"),
        (dict(size=(0, 4)), r"size\[0\]"),
    ],
)
def test_errors(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.edge_support(**(dict(image=torch.zeros(1, 3, 4, 4), size=(2, 2)) | change))
