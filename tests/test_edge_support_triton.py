"""edge_support: the Triton kernels, interpreted where there is no GPU."""

import pytest
import torch
from triton_row import DEVICE, compile_launches, graph_equals_eager, serves

from camguide_fast import ops, reference

pytest.importorskip("triton")

OP = ops.edge_support
SHAPES = [((1, 1), (1, 1)), ((10, 7), (3, 4)), ((3, 10), (5, 4)), ((1, 9), (1, 3)), ((8, 8), (2, 2))]


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    from camguide_fast.kernels import edge_support

    if DEVICE == "cpu":  # several bands, strips and blocks at sizes that the interpreter bears
        for name, value in dict(ROWS=4, PIX=8, CELLS=8, PEAKS=2).items():
            monkeypatch.setattr(edge_support, name, value)
    with serves("edge_support", "edge_support"):
        yield


def image_of(height, width, batch=1):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize("shape, size", SHAPES, ids=str)
def test_equals_the_twin(shape, size):
    image = image_of(*shape)
    exact = reference.edge_support(image.double() / 255, size)
    support = OP(image, size)
    assert support.dtype == torch.float32
    torch.testing.assert_close(support, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype):
    image = (image_of(5, 9) / 255).to(dtype)
    exact = reference.edge_support(image.double(), (2, 3))
    torch.testing.assert_close(OP(image, (2, 3)), exact, rtol=1e-5, atol=1e-6)


def test_constant_images_have_no_edges():
    for dtype in (torch.float32, torch.float16):
        assert not OP(torch.full((1, 3, 7, 9), 0.3, dtype=dtype, device=DEVICE), (2, 2)).any()


def test_strides_batch_and_repeat():
    image = image_of(5, 6, batch=2)
    support = OP(image, (2, 3))
    assert torch.equal(OP(image.contiguous(memory_format=torch.channels_last), (2, 3)), support)
    assert torch.equal(torch.cat([OP(one[None], (2, 3)) for one in image]), support)


def test_kernels_compile_without_a_gpu():
    compile_launches("""
import torch
from camguide_fast.kernels.edge_support import edge_support
edge_support(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), (16, 16))
""")


@pytest.mark.cuda
def test_cuda_graph():
    image = image_of(512, 512, batch=4)
    graph_equals_eager(lambda x: (OP(x, (128, 128)),), image)
