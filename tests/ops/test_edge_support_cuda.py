"""edge_support: the CUDA kernels, run on the CPU; on a GPU as they are."""

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import edge_support as kernels

from camguide_fast import ops, reference

CLOSE = dict(rtol=1e-5, atol=1e-6)


def image_of(height, width, batch=1, dtype=torch.uint8, device="cpu"):
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=device)
    return image if dtype == torch.uint8 else (image / 255).to(dtype)


def exact(image, size):
    return reference.edge_support(image.double() / (255 if image.dtype == torch.uint8 else 1), size)


@pytest.fixture
def short_bands(monkeypatch):
    monkeypatch.setattr(kernels, "ROWS", (8,))  # several bands at small sizes


@pytest.mark.usefixtures("short_bands")
@pytest.mark.parametrize(
    "shape, size, dtype",
    [
        ((1, 1), (1, 1), torch.uint8),
        ((3, 3), (5, 4), torch.uint8),  # cells smaller than pixels
        ((1, 9), (1, 3), torch.uint8),
        ((7, 2), (1, 1), torch.uint8),  # smaller than the filters
        ((24, 32), (6, 8), torch.uint8),  # read by fours, four columns a cell
        ((17, 28), (5, 14), torch.uint8),  # the last thread has four columns beyond the image; two columns a cell
        ((23, 31), (6, 8), torch.uint8),  # one by one
        ((20, 260), (2, 7), torch.uint8),  # more than one warp a channel; cells share columns
        ((23, 31), (6, 8), torch.float32),
        ((24, 32), (6, 8), torch.float32),
    ],
    ids=str,
)
def test_equals_the_twin(shape, size, dtype):
    image = image_of(*shape, dtype=dtype)
    result = cuda_host.every_order(lambda: kernels.edge_support(image, list(size)), orders=(0, 1, 2))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, exact(image, size).float(), **CLOSE)
    torch.testing.assert_close(result, ops.edge_support(image, size), **CLOSE)


@pytest.mark.parametrize("dtype, width", [(torch.uint8, 520), (torch.float32, 521), (torch.float64, 260)], ids=str)
def test_strips_that_overlap(dtype, width):
    image = image_of(9, width, dtype=dtype)
    with cuda_host.on_cpu(order=1):
        result = kernels.edge_support(image, [3, width // 4])
    torch.testing.assert_close(result, exact(image, (3, width // 4)), **CLOSE)


@pytest.mark.usefixtures("short_bands")
@pytest.mark.parametrize(
    "dtype, width",
    [(torch.float64, 33), (torch.float64, 36), (torch.float16, 33), (torch.float16, 36), (torch.bfloat16, 36)],
    ids=str,
)
def test_types(dtype, width):
    image = image_of(19, width, batch=2, dtype=dtype)
    with cuda_host.on_cpu(order=3):
        result = kernels.edge_support(image, [5, 9])
    torch.testing.assert_close(result, exact(image, (5, 9)), **CLOSE)


def test_photograph_like_contrast():
    """Little contrast at a high level, where the blur's four factors would lose most."""
    image = 0.9 + 1e-2 * image_of(40, 48, dtype=torch.float32)
    with cuda_host.on_cpu():
        result = kernels.edge_support(image, [10, 12])
    torch.testing.assert_close(result, exact(image, (10, 12)), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("width", [13, 16])
@pytest.mark.parametrize("value", [1, 77, 255])
def test_constant_images_have_no_edges(value, width):
    image = torch.full((1, 3, 13, width), value, dtype=torch.uint8)
    with cuda_host.on_cpu():
        for x in (image, image / 255):
            assert not kernels.edge_support(x, [4, 5]).any()


def test_faint_edges_are_measured_against_1e_12():
    image = torch.zeros(1, 3, 12, 16, dtype=torch.float64)
    image[..., 8:] = 1e-14
    with cuda_host.on_cpu():
        result = kernels.edge_support(image, [3, 4])
    assert 0 < result.max() < 0.5
    torch.testing.assert_close(result, reference.edge_support(image, (3, 4)), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("short_bands")
def test_strides_batch_and_bands(monkeypatch):
    image = image_of(33, 24, batch=3)
    with cuda_host.on_cpu():
        result = kernels.edge_support(image, [8, 6])
        last = image.contiguous(memory_format=torch.channels_last)
        assert torch.equal(kernels.edge_support(last, [8, 6]), result)
        assert torch.equal(torch.cat([kernels.edge_support(one[None], [8, 6]) for one in image]), result)
        unaligned = torch.cat([image.new_zeros(1), image.flatten()])[1:].view(image.shape)
        torch.testing.assert_close(kernels.edge_support(unaligned, [8, 6]), result, **CLOSE)
        monkeypatch.setattr(kernels, "ROWS", (64,))
        assert torch.equal(kernels.edge_support(image, [8, 6]), result)  # whatever a block marches down


def test_a_nan_stays_in_its_image():
    image = image_of(12, 20, batch=2, dtype=torch.float32)
    image[0, 1, 6, 7] = float("nan")
    with cuda_host.on_cpu():
        result = kernels.edge_support(image, [3, 5])
    assert result[0].isnan().all() and not result[1].isnan().any()


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("if (blur_y == 0)", "if (blur_y == 1)"),  # Scharr's border
        ("      __syncthreads();\n      if (inside && edge_y", "      if (inside && edge_y"),  # a race
        ("parts; i += 32", "parts; i += 64"),  # a maximum forgotten
        ("0.41111229050718743592", "0.4110"),
    ],
)
def test_a_fault_is_seen(right, wrong, short_bands, monkeypatch):
    original = _cuda.source
    assert right in original("edge_support", {})
    monkeypatch.setattr(_cuda, "source", lambda op, defines: original(op, defines).replace(right, wrong))
    monkeypatch.setattr(kernels, "ROWS", (1,))
    image = image_of(36, 12)
    image[..., 34:, 8:] = 255 - image[..., 34:, 8:] // 32
    with pytest.raises(AssertionError):
        result = cuda_host.every_order(lambda: kernels.edge_support(image, [36, 12]), orders=(0, 1, 2))
        torch.testing.assert_close(result, exact(image, (36, 12)).float(), **CLOSE)


def test_the_op_is_served_by_it():
    row = ops.backends()["edge_support"]["cuda"]
    assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


GPU_SHAPES = [((1, 1), (1, 1)), ((512, 512), (128, 128)), ((375, 500), (94, 125)), ((61, 1030), (15, 9))]


@pytest.mark.cuda
@pytest.mark.parametrize("shape, size", GPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_cuda_on_a_side_stream(shape, size, dtype):
    image = image_of(*shape, batch=3, dtype=dtype, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        result, again = (ops.edge_support(image, size) for _ in range(2))
        torch.testing.assert_close(result, exact(image, size), **CLOSE)
        assert torch.equal(result, again)
    torch.cuda.synchronize()


@pytest.mark.cuda
def test_cuda_graph():
    image, held = (image_of(512, 512, batch=4, device="cuda") for _ in range(2))
    expected = ops.edge_support(image, (128, 128))  # compiles the kernels before the capture, too
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.edge_support(held, (128, 128))
    held.copy_(image)
    graph.replay()
    assert torch.equal(result, expected)
