"""slic on CUDA: csrc/cuda/slic.cu, run on the CPU by tests/cuda_host, and on a GPU where there is one. The labels are
those of the CPU, bit for bit."""

import re
import subprocess
from unittest import mock

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import slic as kernels
from support.capture import captured
from support.nvcc import NVCC

from camguide_fast import ops, reference
from camguide_fast.reference.slic import _components, _merge_small, quantised_lab

DTYPES = [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64]
ORDERS = (0, 1, 2)


def picture(batch, height, width, kind="patches", device="cpu"):
    if kind == "noise":
        return torch.rand(batch, 3, height, width, device=device)
    if kind == "black and white":  # ties everywhere
        bits = torch.randint(0, 2, (batch, 1, height, width), dtype=torch.uint8, device=device)
        return bits.mul(255).repeat(1, 3, 1, 1)
    if kind == "constant":
        return torch.full((batch, 3, height, width), 77, dtype=torch.uint8, device=device)
    coarse = torch.rand(batch, 3, -(-height // 9), -(-width // 9), device=device)
    patches = torch.nn.functional.interpolate(coarse, scale_factor=9, mode="nearest")[..., :height, :width]
    return (patches * 200 + torch.rand_like(patches) * 55).to(torch.uint8)


@pytest.mark.parametrize(
    "case",
    [  # batch, height, width, n_segments, compactness, iterations, min_size_factor
        (1, 1, 1, 1, 10.0, 10, 0.5),
        (3, 1, 37, 5, 10.0, 3, 0.5),
        (1, 61, 1, 61, 10.0, 3, 0.5),
        (3, 17, 65, 12, 10.0, 4, 0.0),
        (1, 40, 70, 30, 1.0, 10, 0.5),
        (1, 33, 35, 1, 10.0, 2, 0.5),
        (2, 41, 67, 20, 0.05, 3, 0.25),
        (1, 41, 67, 20, 1e6, 3, 3.0),
        (1, 40, 50, 2000, 10.0, 3, 0.5),  # more boxes than lanes, more rivals than fit
        (1, 40, 50, 1999, 3.0, 3, 0.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["patches", "noise", "black and white", "constant"])
def test_equals_the_cpu(case, kind):
    batch, height, width, *settings = case
    image = picture(batch, height, width, kind)
    result = cuda_host.every_order(lambda: kernels.slic(image, *settings), ORDERS[: 2 if height * width > 900 else 3])
    for expected in (ops.slic(image, *settings, return_num=True), reference.slic(image, *settings)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_and_strides(dtype):
    image = picture(2, 35, 50)
    image = image if dtype == torch.uint8 else (image.to(torch.float64) * 0.03 - 2).to(dtype)
    expected, _ = reference.slic(image, 20, 10.0, 3, 0.5)
    with cuda_host.on_cpu(order=3):
        for form in (image, image.to(memory_format=torch.channels_last), image.mT.contiguous().mT):
            assert torch.equal(kernels.slic(form, 20, 10.0, 3, 0.5)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_colour(dtype):
    """Lab on the grid of 2^-16, of each byte in each channel and of what lies between."""
    ramp = torch.arange(256, dtype=torch.uint8)
    image = torch.stack([ramp, ramp.flip(0), ramp.roll(100)])[None, :, None]
    image = torch.cat([image, image.flip(1), torch.randint(0, 256, (1, 3, 1, 256), dtype=torch.uint8)])
    if dtype != torch.uint8:
        image = ((image + torch.rand(image.shape, dtype=torch.float64)) * 3 - 100).to(dtype)
    result = cuda_host.every_order(lambda: kernels._colours(image, preparing(dtype)), ORDERS)
    assert torch.equal(result, quantised_lab(image))


def preparing(dtype=torch.uint8):
    def prepare(kernel, threads, block, *args):
        defines = {"IMAGE_TYPE": _cuda.TYPES[dtype]}
        return _cuda.prepare("slic", kernel, -(-threads // block), block, args, defines=defines)

    return prepare


def spiral(size: int) -> torch.Tensor:
    """Two arms one pixel wide: components that take as many joins as can be."""
    label, direction, y, x = torch.zeros(size, size, dtype=torch.int32), 0, 0, 0
    label[0, 0] = 1
    for length in [size - 1] + [n for n in range(size - 1, 0, -2) for _ in range(2)]:
        dy, dx = [(0, 1), (1, 0), (0, -1), (-1, 0)][direction % 4]
        for _ in range(length):
            y, x = y + dy, x + dx
            if not (0 <= y < size and 0 <= x < size):
                return label
            label[y, x] = 1
        direction += 1
    return label


LABELS = {
    "one": torch.zeros(13, 21, dtype=torch.int32),
    "pixel": torch.zeros(1, 1, dtype=torch.int32),
    "rows": torch.arange(40, dtype=torch.int32)[:, None].expand(40, 70).contiguous(),
    "columns": torch.arange(70, dtype=torch.int32).expand(40, 70).contiguous(),
    "chessboard": (torch.arange(31)[:, None] + torch.arange(67)).remainder(2).to(torch.int32),
    "spiral": spiral(45),
    "first group small": torch.tensor([[0, 1, 1, 1], [2, 1, 3, 3], [2, 2, 3, 3]], dtype=torch.int32),
}


@pytest.mark.parametrize("smallest", [0, 1, 4, 30, 10**6])
@pytest.mark.parametrize("name", [*LABELS, "noise", "coarse noise"])
def test_connectivity(name, smallest):
    if name in LABELS:
        label = LABELS[name]
    else:
        label = torch.randint(0, 2, (40, 60), dtype=torch.int32)
        if name == "coarse noise":
            label = label.repeat_interleave(3, 0).repeat_interleave(2, 1)[:61, :75].contiguous()
    labels = torch.stack([label, label.flip(1), torch.zeros_like(label)])  # an image's components end with it
    expected = torch.stack([_merge_small(_components(one.long()), smallest) for one in labels]).to(torch.int32)
    orders = ORDERS if smallest == 4 else (2,)
    segments, num = cuda_host.every_order(lambda: kernels._connect(labels, smallest, preparing()), orders)
    assert torch.equal(segments, expected)
    assert torch.equal(num, expected.amax((1, 2)) + 1)


@pytest.mark.parametrize("barrier", ["__syncwarp();", "__syncthreads();"])
def test_a_missing_barrier_is_seen(barrier):
    """Guards the tests above: in some order of the threads the labels are others."""
    image, source, results = picture(1, 40, 70), _cuda.source, []
    with mock.patch.object(_cuda, "source", lambda op, defines: source(op, defines).replace(barrier, "")):
        for order in ORDERS:
            with cuda_host.on_cpu(order):
                try:
                    results.append(kernels.slic(image, 30, 10.0, 2, 0.5)[0])
                except cuda_host.KernelError:
                    results.append(None)
    expected = ops.slic(image, 30, 10.0, 2, 0.5)
    assert any(result is None or not torch.equal(result, expected) for result in results)


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
def test_nothing_is_contracted(dtype, tmp_path):
    """Additions and multiplications that do not say how they round may become fused multiply-adds."""
    (tmp_path / "slic.cu").write_text(_cuda.source("slic", {"IMAGE_TYPE": _cuda.TYPES[dtype]}))
    command = [NVCC, "-std=c++17", "-ptx", "-arch=sm_90", tmp_path / "slic.cu", "-o", tmp_path / "slic.ptx"]
    subprocess.run(command, check=True)
    operations = re.findall(r"\b((?:add|sub|mul|mad|fma)[.\w]*\.f(?:32|64))\b", (tmp_path / "slic.ptx").read_text())
    assert {"add.rn.f32", "mul.rn.f32"} <= set(operations)
    assert set(operations) <= {f"{name}.rn.f{bits}" for name in ("add", "sub", "mul") for bits in (32, 64)}


def test_the_op_is_served_by_it():
    row = ops.backends()["slic"]["cuda"]
    assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (3, 61, 67, 40), (4, 512, 512, 1100), (1, 300, 517, 20_000), (1, 64, 64, 4096), (2, 375, 500, 3)],
    ids=str,
)
def test_cuda_on_a_side_stream(shape, dtype):
    *size, n_segments = shape
    image = picture(*size, device="cuda")
    image = image if dtype == torch.uint8 else (image / 255).to(dtype)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        for factor in (0.0, 0.5):
            expected, expected_num = ops.slic(image.cpu(), n_segments, min_size_factor=factor, return_num=True)
            for _ in range(2):
                segments, num = ops.slic(image, n_segments, min_size_factor=factor, return_num=True)
                assert torch.equal(segments.cpu(), expected) and torch.equal(num.cpu(), expected_num)
            strided = image.to(memory_format=torch.channels_last)
            assert torch.equal(ops.slic(strided, n_segments, min_size_factor=factor).cpu(), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["noise", "black and white", "constant"])
def test_cuda_unnatural_images(kind):
    image = picture(2, 200, 333, kind, device="cuda")
    for n_segments, compactness in [(1, 10.0), (300, 10.0), (300, 0.05), (300, 1e6), (66_600, 1.0)]:
        expected = ops.slic(image.cpu(), n_segments, compactness)
        assert torch.equal(ops.slic(image, n_segments, compactness).cpu(), expected)


@pytest.mark.cuda
def test_cuda_graph():
    image = picture(2, 100, 130, device="cuda")
    graph, segments = captured(lambda: ops.slic(image, 60))
    image.copy_(picture(2, 100, 130, "noise", device="cuda").mul(255).to(torch.uint8))
    graph.replay()
    assert torch.equal(segments.cpu(), ops.slic(image.cpu(), 60))
