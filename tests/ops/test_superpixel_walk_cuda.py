"""superpixel_graph and superpixel_random_walk on CUDA: csrc/cuda/superpixel_walk.cu, run on the CPU by tests/cuda_host,
and on a GPU where there is one. Integers are those of the CPU, floats theirs to rounding."""

import itertools
from unittest import mock

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from camguide_fast.kernels import superpixel_walk as kernels
from support.capture import captured

from camguide_fast import ops, reference

ORDERS = (0, 1, 2)


def case(batch, maps, height, width, n, dtype=torch.float32, image=torch.float32, device="cpu"):
    """Labels in patches and single pixels, with gaps, most of them not connected."""
    coarse = torch.randint(0, n, (batch, 1, -(-height // 4), -(-width // 4)), device=device)
    segments = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0, :height, :width]
    single = torch.rand(segments.shape, device=device) < 0.1
    segments = torch.where(single, torch.randint_like(segments, n), segments).to(torch.int32)
    colours = torch.rand(batch, 3, height, width, device=device)
    colours = (colours * 255).to(torch.uint8) if image == torch.uint8 else colours.to(image)
    return torch.rand(batch, maps, height, width, device=device).to(dtype), segments, colours


def exact(target, segments, image, sigma, squared, n, iterations=12):
    """The twin in fp64, from bytes divided in fp32 as everywhere."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    graph = reference.superpixel_graph(segments, image.double(), sigma, squared, n, False)
    return graph, reference.superpixel_random_walk(target.double(), segments, *graph, iterations)


def check_graph(graph, expected, tolerance):
    for ours, theirs in zip(graph[:3], expected[:3], strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(graph[3].double(), expected[3].double(), **tolerance)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (1, 2, 1, 40, 7),
        (3, 3, 40, 1, 9),
        (3, 5, 13, 29, 5),
        (1, 64, 9, 11, 30),
        (1, 9, 21, 35, 50),
        (1, 4, 12, 12, 144),
    ],
    ids=str,
)
def test_equals_the_twin(shape, squared):
    target, segments, image = case(*shape)
    n = shape[-1]
    twin, expected = exact(target, segments, image, 9.0, squared, n)
    graph = cuda_host.every_order(lambda: kernels.superpixel_graph(segments, image, 9.0, squared, n, False), ORDERS)
    check_graph(graph, twin, dict(rtol=2e-5, atol=1e-6))
    native = torch.ops.camguide_fast.superpixel_graph(segments, image, 9.0, squared, n, False)
    check_graph(graph, native, dict(rtol=1e-6, atol=1e-7))
    for largest_shared in (kernels.LARGEST_SHARED, 0):  # steps in shared memory, or a launch each
        with mock.patch.object(kernels, "LARGEST_SHARED", largest_shared):
            walk = cuda_host.every_order(lambda: kernels.superpixel_random_walk(target, segments, *graph, 12), ORDERS)
        assert (walk - expected).abs().max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("image", [torch.uint8, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types(dtype, image):
    target, segments, colours = case(2, 5, 9, 14, 20, dtype, image)
    twin, expected = exact(target, segments, colours, 5.0, False, 20)
    with cuda_host.on_cpu(order=3):
        graph = kernels.superpixel_graph(segments, colours, 5.0, False, 20, False)
        walk = kernels.superpixel_random_walk(target, segments, *graph, 12)
    assert graph[3].dtype == (torch.float64 if image == torch.float64 else torch.float32)
    check_graph(graph, twin, dict(rtol=1e-11, atol=1e-12) if image == torch.float64 else dict(rtol=5e-5, atol=1e-6))
    assert walk.dtype == dtype
    if dtype == image == torch.float64:
        torch.testing.assert_close(walk, expected, rtol=1e-11, atol=1e-12)
    else:
        rounded = reference.superpixel_random_walk(target, segments, *graph, 12)
        step = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(walk, rounded, rtol=step, atol=0)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
@pytest.mark.parametrize("largest_shared", [kernels.LARGEST_SHARED, 0])
def test_few_steps(iterations, largest_shared):
    target, segments, image = case(1, 6, 10, 17, 12)
    _, expected = exact(target, segments, image, 9.0, False, 12, iterations)
    with mock.patch.object(kernels, "LARGEST_SHARED", largest_shared), cuda_host.on_cpu(order=1):
        graph = kernels.superpixel_graph(segments, image, 9.0, False, 12, False)
        walk = kernels.superpixel_random_walk(target, segments, *graph, iterations)
    torch.testing.assert_close(walk.double(), expected, rtol=1e-5, atol=1e-6)


def test_lists_as_long_as_the_batch_needs():
    _, segments, image = case(2, 1, 12, 14, 20)
    with cuda_host.on_cpu(order=1):
        graph = kernels.superpixel_graph(segments, image, 9.0, False, 20, True)
    native = ops.superpixel_graph(segments, image, 9.0, num_segments=20)
    check_graph(graph, native[1:], dict(rtol=1e-6, atol=1e-7))
    assert graph[2].shape[1] == graph[1][:, -1].max()


@pytest.mark.parametrize("stray", [5, 8, 10**6, 2**31 - 1, -1, -(2**31)])
def test_a_label_out_of_range_writes_nowhere(stray):
    """Not to the bounds of another image, nor past the last one's."""
    segments = torch.randint(0, 5, (2, 6, 40), dtype=torch.int32)
    segments[:, 2:4, 10:30] = stray
    with cuda_host.on_cpu(order=1):
        bounds = kernels._bounds(segments, 5, kernels._launcher({"IMAGE_TYPE": "float"}))
    for b, n in itertools.product(range(2), range(5)):
        y, x = (segments[b] == n).nonzero().T
        assert bounds[b, n].tolist() == [6 - y.min(), y.max() + 1, 40 - x.min(), x.max() + 1]


def test_labels_more_than_bits_fit():
    _, segments, image = case(1, 1, 12, 14, 150)
    expected = reference.superpixel_graph(segments, image, 9.0, False, 150, False)
    with mock.patch.object(kernels, "LABELS_AT_ONCE", 64):
        graph = cuda_host.every_order(lambda: kernels.superpixel_graph(segments, image, 9.0, False, 150, False), ORDERS)
    check_graph(graph, expected, dict(rtol=2e-5, atol=1e-6))


def test_a_superpixel_that_touches_all_others():
    """More neighbours than threads, in words that they share out, some of them empty."""
    segments = torch.zeros(1, 24, 24, dtype=torch.int32)
    segments[0, ::2, ::2] = torch.arange(1, 145, dtype=torch.int32).view(12, 12)
    segments = torch.where(segments > 70, segments + 150, segments)
    image = torch.rand(1, 3, 24, 24)
    expected = reference.superpixel_graph(segments, image, 9.0, False, 300, False)
    graph = cuda_host.every_order(lambda: kernels.superpixel_graph(segments, image, 9.0, False, 300, False), ORDERS)
    check_graph(graph, expected, dict(rtol=2e-5, atol=1e-6))
    assert graph[1][0, 1] == 144


def test_constant_images_gaps_and_strides():
    target, segments, image = case(2, 3, 12, 19, 16)
    flat = torch.full_like(image, 0.3)
    with cuda_host.on_cpu():
        graph = kernels.superpixel_graph(segments, flat, 2.0, False, 40, False)
        degree = graph[1].diff(dim=1)
        for b in range(2):
            weights = graph[3][b, : graph[1][b, -1]]
            torch.testing.assert_close(weights, (1 / degree[b].float()).repeat_interleave(degree[b]))
        expected = kernels.superpixel_random_walk(target, segments, *graph, 12)
        strided = [t.mT.contiguous().mT for t in (target, segments, flat)]
        again = kernels.superpixel_graph(strided[1], strided[2], 2.0, False, 40, False)
        assert all(cuda_host.same_bits(a, b) for a, b in zip(graph, again, strict=True))
        assert cuda_host.same_bits(kernels.superpixel_random_walk(*strided[:2], *again, 12), expected)
        constant = kernels.superpixel_random_walk(torch.full_like(target, 2.5), segments, *graph, 12)
    torch.testing.assert_close(constant, torch.full_like(target, 2.5))


def test_an_image_of_one_superpixel_keeps_its_mean():
    """And of large values, to fp32's last digits."""
    target = torch.rand(1, 2, 50, 70) + torch.tensor([0.0, 1e4]).view(1, 2, 1, 1)
    segments = torch.zeros(1, 50, 70, dtype=torch.int32)
    with cuda_host.on_cpu(order=2):
        graph = kernels.superpixel_graph(segments, torch.rand(1, 3, 50, 70), 2.0, False, 1, False)
        walk = kernels.superpixel_random_walk(target, segments, *graph, 12)
    mean = target.double().mean((2, 3), keepdim=True).expand_as(walk)
    torch.testing.assert_close(walk.double(), mean, rtol=1e-7, atol=0)


def test_a_nan_reaches_its_image_alone():
    target, segments, image = case(2, 2, 8, 9, 6)
    image[0, 1, 4, 4] = float("nan")
    target[1, 0, 2, 2] = float("nan")
    with cuda_host.on_cpu():
        graph = kernels.superpixel_graph(segments, image, 2.0, False, 6, False)
        walk = kernels.superpixel_random_walk(target, segments, *graph, 12)
    assert graph[3][0].isnan().any() and not graph[3][1].isnan().any()
    assert walk[0].isnan().any() and walk[1, 0].isnan().any() and not walk[1, 1].isnan().any()


@pytest.mark.parametrize("op", ["graph", "walk"])
def test_a_missing_barrier_is_seen(op):
    """Guards the tests above."""
    target, segments, image = case(1, 3, 13, 29, 12)
    source, graph = _cuda.source, reference.superpixel_graph(segments, image, 2.0, False, 12, False)

    def result(order):
        with cuda_host.on_cpu(order):
            if op == "graph":
                tensors = kernels.superpixel_graph(segments, image, 2.0, False, 12, False)
                return torch.cat([t.double().flatten() for t in tensors])
            return kernels.superpixel_random_walk(target, segments, *graph, 12)

    def is_right(order):
        try:
            return cuda_host.same_bits(result(order), expected)
        except cuda_host.KernelError:
            return False

    expected = result(0)
    assert all(map(is_right, ORDERS))
    with mock.patch.object(_cuda, "source", lambda op, defines: source(op, defines).replace("__syncthreads();", ";")):
        assert not all(map(is_right, ORDERS))


def test_the_ops_are_served_by_it():
    for op in ("superpixel_graph", "superpixel_random_walk"):
        row = ops.backends()[op]["cuda"]
        assert row.backend == "cuda" or row.why in ("cupy is not installed", "CAMGUIDE_FAST_BACKEND=reference")


def natural(batch, maps, height, width, device="cuda"):
    """Superpixels as slic gives them."""
    coarse = torch.rand(batch, 3, -(-height // 20), -(-width // 20), device=device)
    image = torch.nn.functional.interpolate(coarse, scale_factor=20, mode="bilinear")[..., :height, :width].contiguous()
    return torch.rand(batch, maps, height, width, device=device), ops.slic(image, height * width // 238 + 1), image


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 21, 61, 67), (2, 20, 512, 512), (1, 64, 300, 517)], ids=str)
def test_cuda_on_a_side_stream(size, dtype):
    target, segments, image = natural(*size)
    target, n = target.to(dtype), int(segments.max()) + 1
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        graphs = [ops.superpixel_graph(segments, image, 5.0, num_segments=n) for _ in range(2)]
        walks = [ops.superpixel_random_walk(target, graph=graph) for graph in graphs]
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip([*graphs[0], walks[0]], [*graphs[1], walks[1]], strict=True))
    twin, expected = exact(target.cpu(), segments.cpu(), image.cpu(), 5.0, False, n)
    check_graph([t.cpu() for t in graphs[0][1:]], twin, dict(rtol=5e-5, atol=1e-6))
    bound = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    assert (walks[0].cpu().double() - expected).abs().max() <= bound * expected.max()


@pytest.mark.cuda
def test_cuda_many_superpixels():
    """Too many for shared memory, and labels strewn over the image."""
    target, segments, image = case(1, 5, 120, 150, 9000, device="cuda")
    twin, expected = exact(target.cpu(), segments.cpu(), image.cpu(), 9.0, False, 9000)
    graph = ops.superpixel_graph(segments, image, 9.0, num_segments=9000)
    check_graph([t.cpu() for t in graph[1:]], twin, dict(rtol=5e-5, atol=1e-6))
    walk = ops.superpixel_random_walk(target, graph=graph).cpu().double()
    assert (walk - expected).abs().max() <= 1e-5 * expected.max()


@pytest.mark.cuda
def test_cuda_graph():
    target, segments, image = natural(2, 5, 100, 130)
    n = int(segments.max()) + 1

    def step():
        return ops.superpixel_random_walk(target, segments, image, num_segments=n)

    graph, walk = captured(step)
    target.copy_(torch.rand_like(target))
    image.copy_(torch.rand_like(image))
    graph.replay()
    torch.testing.assert_close(walk, step(), rtol=0, atol=0)
