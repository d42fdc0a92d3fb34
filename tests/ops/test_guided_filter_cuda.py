"""guided_filter on CUDA: csrc/cuda/guided_filter.cu, run on the CPU by tests/cuda_host, and on a GPU where there is
one."""

from types import SimpleNamespace

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import guided_filter as kernels
from skimage import data
from support.capture import captured

from camguide_fast import ops, reference

EPS = 1e-2


def case(shape, dtype=torch.float32, guide=None, device="cpu"):
    b, k, h, w = shape
    z = torch.randn(shape, device=device).to(dtype)
    image = torch.rand(b, 3, h, w, device=device)
    if guide == torch.uint8:
        return z, (image * 255).round().to(torch.uint8)
    return z, image.to(guide or dtype)


def exact(z, guide, radius, adjoint, eps=EPS):
    guide = guide.float() if guide.dtype == torch.uint8 else guide
    guide = guide.double() / 255 if guide.max() > 1 else guide.double()
    return reference.guided_filter(z.double(), guide, radius, eps, adjoint)


def error(result, expected):
    return ((result.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
@pytest.mark.parametrize(
    "shape, radius",
    [
        ((1, 1, 1, 1), 4),  # clipped to radius 1
        ((2, 3, 5, 7), 4),
        ((1, 6, 40, 36), 4),  # two runs of rows, two blocks of channels, read by fours
        ((1, 1, 5, 260), 4),  # strips that overlap, read by fours
        ((1, 2, 3, 245), 6),  # and one by one
        ((1, 1, 35, 150), 16),  # the largest radius of a strip
        ((1, 2, 9, 3), 2),
        ((1, 3, 40, 23), 17),  # too large for a strip
        ((1, 2, 5, 131), 25),  # runs of several warps' widths and what is left
        ((2, 2, 6, 70), 10**9),
    ],
    ids=str,
)
def test_equals_the_reference(shape, radius, adjoint):
    z, guide = case(shape)
    result = cuda_host.every_order(lambda: kernels.guided_filter(z, guide, radius, EPS, adjoint), orders=(0, 1, 2))
    assert error(result, exact(z, guide, min(radius, max(shape)), adjoint)) <= 1e-5


@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
@pytest.mark.parametrize(
    "dtype, guide, radius",
    [
        (torch.float16, torch.uint8, 4),
        (torch.bfloat16, torch.float16, 1),
        (torch.float16, torch.bfloat16, 30),
        (torch.float64, torch.float64, 3),
        (torch.float64, torch.uint8, 9),
    ],
    ids=str,
)
def test_types(dtype, guide, radius, adjoint):
    z, guide = case((1, 3, 21, 28), dtype, guide)
    with cuda_host.on_cpu(order=3):
        result = kernels.guided_filter(z, guide, radius, EPS, adjoint)
    assert result.dtype == dtype
    expected = exact(z, guide.float() if dtype != torch.float64 else guide, radius, adjoint)
    if dtype == torch.float64:
        assert error(result, expected) <= (1e-12 if guide.dtype == dtype else 1e-6)  # bytes / 255 in fp32, as the twin
    else:
        twin = reference.guided_filter(z, guide, radius, EPS, adjoint)
        assert error(result, expected) <= 2 * error(twin, expected)


def test_adjoint():
    """<g, GF z> = <GF^T g, z>, and the backward is that."""
    z, guide = case((1, 2, 12, 20), torch.float64)
    g = torch.randn_like(z)
    with cuda_host.on_cpu():
        forward, backward = (kernels.guided_filter(x, guide, 3, EPS, a) for x, a in ((z, False), (g, True)))
    torch.testing.assert_close((g * forward).sum(), (backward * z).sum())
    (grad,) = torch.autograd.grad(ops.guided_filter(z.requires_grad_(), guide, 3, EPS), z, g)
    torch.testing.assert_close(backward, grad)


def test_little_contrast_in_a_bright_guide():
    """Without a shift of the guide, its covariance of 1e-7 would drown in the rounding of its square."""
    z, guide = case((1, 2, 40, 36))
    guide = 0.9 + 1e-3 * guide
    with cuda_host.on_cpu():
        result = kernels.guided_filter(z, guide, 4, 1e-7, False)
    assert error(result, exact(z, guide, 4, False, eps=1e-7)) <= 2e-4


def test_equal_channels():
    """A grey guide's covariance is singular but for eps."""
    z, guide = case((1, 2, 20, 24))
    guide = guide[:, :1].expand_as(guide).contiguous()
    for eps in (1e-6, 1e-4, 1e20):
        for radius in (1, 4, 18):
            for adjoint in (False, True):
                with cuda_host.on_cpu():
                    result = kernels.guided_filter(z, guide, radius, eps, adjoint)
                assert error(result, exact(z, guide, radius, adjoint, eps=eps)) <= 2e-4


@pytest.mark.parametrize("radius", [1, 4, 20])
@pytest.mark.parametrize("name", ["camera", "astronaut"])
def test_photographs_and_the_smallest_eps(name, radius):
    photo = torch.from_numpy(getattr(data, name)()[100:160, 100:240].copy())
    guide = (photo.expand(3, -1, -1) if photo.ndim == 2 else photo.permute(2, 0, 1))[None].contiguous()
    z = (guide[:, :1] > 120).float()
    for adjoint in (False, True):
        with cuda_host.on_cpu():
            result = kernels.guided_filter(z, guide, radius, 1e-6, adjoint)
        assert (result.double() - exact(z, guide, radius, adjoint, eps=1e-6)).abs().max() <= 2e-3


@pytest.mark.parametrize("radius", [1, 4, 20])
def test_a_flat_part_beside_a_dark_one(radius):
    """Its covariance is of the size of eps, and its distance to any one origin of the strip may be large."""
    z, guide = case((1, 1, 24, 120))
    guide = (0.95 + 2e-3 * guide[:, :1]).expand(-1, 3, -1, -1).contiguous()
    guide[..., 60:] -= 0.93
    for adjoint in (False, True):
        with cuda_host.on_cpu():
            result = kernels.guided_filter(z, guide, radius, 1e-6, adjoint)
        assert (result.double() - exact(z, guide, radius, adjoint, eps=1e-6)).abs().max() <= 5e-3


@pytest.mark.parametrize("radius", [4, 30])
def test_constant_maps_and_strides(radius):
    z, guide = case((1, 6, 40, 36))
    with cuda_host.on_cpu():
        constant = kernels.guided_filter(torch.full_like(z, 3.5), guide, radius, EPS, False)
        expected = kernels.guided_filter(z, guide, radius, EPS, False)
        strided = z.transpose(2, 3).contiguous().transpose(2, 3)
        last = guide.to(memory_format=torch.channels_last)
        assert torch.equal(kernels.guided_filter(strided, last, radius, EPS, False), expected)
        buffer = torch.cat([z.new_zeros(1), z.flatten()])  # not aligned for reads by fours
        torch.testing.assert_close(kernels.guided_filter(buffer[1:].view(z.shape), guide, radius, EPS, False), expected)
    torch.testing.assert_close(constant, torch.full_like(z, 3.5))


@pytest.mark.parametrize("radius", [4, 30])
def test_a_nan_stays_in_its_map(radius):
    z, guide = case((1, 6, 40, 36))
    z[0, 1, 20, 20] = float("nan")
    with cuda_host.on_cpu():
        result = kernels.guided_filter(z, guide, radius, EPS, False)
    assert result[0, 1, 12:29, 12:29].isnan().all()
    assert not result[0, [0, 2, 3, 4, 5]].isnan().any()


ADA, HOPPER = 100 * 1024, 228 * 1024  # shared memory of a multiprocessor


@pytest.mark.parametrize(
    "k, radius, shared, warps",
    [
        (1, 4, ADA, 1),  # none without work, which would hold memory
        (2, 4, ADA, 2),
        (20, 4, ADA, 5),  # 4 x 5, all that a multiprocessor has room for
        (21, 4, ADA, 5),
        (20, 4, HOPPER, 4),  # three blocks
        (21, 4, HOPPER, 3),  # 7 x 3, four blocks
        (1, 4, HOPPER, 1),
        (21, 16, ADA, 1),  # more do not fit
        (21, 1, ADA, 8),
    ],
)
def test_warps_of_a_block(k, radius, shared, warps):
    ring = (2 * radius + 1) * kernels.STRIP * 16
    assert kernels._warps(k, ring, shared) == warps
    assert warps * ring <= kernels.SHARED


def test_what_the_gpu_has(monkeypatch):
    found = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=HOPPER)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {1: found}.__getitem__)
    assert _cuda.multiprocessors() == (132, HOPPER)


def test_rows_fill_the_multiprocessors():
    assert kernels._rows(512, 35, 4, 132 * 4) == 40  # in one wave; 32 would take two
    assert kernels._rows(512, 25, 4, 34) == 64
    assert kernels._rows(10, 1, 4, 34) == 8  # no row of a small image waits for another


@pytest.mark.parametrize("k, shared", [(1, ADA), (5, ADA), (5, HOPPER), (7, HOPPER), (8, 10**6)])
def test_sizes_of_another_gpu(k, shared, monkeypatch):
    """What a GPU of many multiprocessors, or of much shared memory, is given."""
    z, guide = case((1, k, 70, 36))
    monkeypatch.setattr(cuda_host, "MULTIPROCESSORS", (1000 // k, shared))
    with cuda_host.on_cpu():
        result = kernels.guided_filter(z, guide, 4, EPS, False)
    assert error(result, exact(z, guide, 4, False)) <= 1e-5


@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
@pytest.mark.parametrize("classes", [0, 1, 2, 3])
def test_bounded_workspaces_of_large_windows(classes, adjoint, monkeypatch):
    z, guide = case((2, 5, 30, 26))
    with cuda_host.on_cpu():
        expected = kernels.guided_filter(z, guide, 20, EPS, adjoint)
        monkeypatch.setattr(kernels, "WORKSPACE", classes * 8 * 30 * 26 * 4)
        taken, launch = set(), _cuda.launch

        def recorded(*args, **options):
            taken.update((a.data_ptr(), a.nbytes) for a in args[4] if isinstance(a, torch.Tensor) and a.dim() == 3)
            launch(*args, **options)

        monkeypatch.setattr(_cuda, "launch", recorded)
        assert torch.equal(kernels.guided_filter(z, guide, 20, EPS, adjoint), expected)
    planes = max(8 * classes, 13, 9 + 4 * classes)
    assert max(size for _, size in taken) <= planes * 30 * 26 * 4


def test_bytes_are_divided_by_255_exactly():
    kernel = """extern "C" __global__ void units(const unsigned char* x, float* y) {
      y[threadIdx.x] = unit<float>(x[threadIdx.x]);
    }"""
    header = (_cuda.SOURCES / "common/camguide.cuh").read_text().replace("#pragma once", "")
    x, y = torch.arange(256, dtype=torch.uint8), torch.empty(256)
    cuda_host.run(f"{header}\n{kernel}", "units", 1, 256, (x, y))
    assert torch.equal(y, x.float() / 255)


def test_the_op_is_served_by_it():
    row = ops.backends()["guided_filter"]["cuda"]
    assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


GPU_SHAPES = [
    ((1, 1, 1, 1), 4),
    ((4, 20, 128, 128), 4),
    ((2, 7, 61, 67), 4),
    ((1, 3, 300, 516), 16),
    ((1, 5, 100, 90), 60),
    ((1, 40, 700, 500), 30),  # classes in several portions
]


@pytest.mark.cuda
@pytest.mark.parametrize("shape, radius", GPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_cuda_on_a_side_stream(shape, radius, dtype):
    z, guide = case(shape, dtype, torch.uint8, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        for adjoint in (False, True):
            result = kernels.guided_filter(z * 1, guide, radius, EPS, adjoint)
            again = kernels.guided_filter(z * 1, guide, radius, EPS, adjoint)
            expected = exact(z, guide, min(radius, max(shape)), adjoint)
            bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
            assert error(result, expected) <= bound
            assert torch.equal(result, again)
    torch.cuda.synchronize()


@pytest.mark.cuda
@pytest.mark.parametrize("radius", [4, 60])
def test_cuda_graph(radius):
    z, guide = case((2, 5, 61, 64), device="cuda")
    z.requires_grad_()

    def step():
        q = ops.guided_filter(z, guide, radius, EPS)
        return q.detach(), *torch.autograd.grad(q.square().sum(), z)

    graph, (q, dz) = captured(step)
    with torch.no_grad():
        z.copy_(torch.randn_like(z))
    graph.replay()
    expected = exact(z.detach(), guide, radius, False)
    assert error(q, expected) <= 1e-5
    assert error(dz, exact(2 * expected, guide, radius, True)) <= 1e-5


@pytest.mark.cuda
def test_cuda_gradient():
    z, guide = case((1, 2, 6, 5), torch.float64, device="cuda")
    assert torch.autograd.gradcheck(lambda z: ops.guided_filter(z, guide, 2), z.requires_grad_())
