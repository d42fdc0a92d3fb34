"""superpixel_random_walk, superpixel_graph: the C++ rows equal the twin, on any threads and at any size."""

import math

import pytest
import torch

from camguide_fast import ops, reference

SPREAD = [  # batch, maps, height, width, num_segments
    (1, 1, 1, 1, 1),
    (1, 2, 1, 40, 7),
    (2, 3, 40, 1, 40),
    (3, 7, 13, 29, 5),
    (1, 64, 9, 11, 30),
    (2, 21, 33, 47, 300),
    (1, 15, 24, 24, 576),
    (1, 5, 67, 131, 3),  # runs of hundreds of pixels, several chunks of the raster
    (1, 33, 40, 103, 900),
    (1, 1, 1, 5000, 4),
]


def random_case(batch, maps, height, width, num_segments, dtype=torch.float32):
    """Labels in patches and single pixels, with gaps, most of them not connected."""
    coarse = torch.randint(0, num_segments, (batch, 1, -(-height // 4), -(-width // 4)))
    segments = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0, :height, :width]
    single = torch.rand(segments.shape) < 0.1
    segments = torch.where(single, torch.randint(0, num_segments, segments.shape), segments).to(torch.int32)
    return torch.rand(batch, maps, height, width).to(dtype), segments, torch.rand(batch, 3, height, width)


@pytest.mark.parametrize("shape", SPREAD, ids=str)
@pytest.mark.parametrize("squared", [False, True])
def test_native_equals_twin(shape, squared):
    target, segments, image = random_case(*shape)
    sigma, n = 9.0, shape[-1]
    twin = ops.SuperpixelGraph(segments, *reference.superpixel_graph(segments, image.double(), sigma, squared, n, True))
    graph = ops.superpixel_graph(segments, image, sigma, squared, n)
    for ours, theirs in zip(graph[:4], twin[:4], strict=True):
        assert torch.equal(ours, theirs)
    # fp32: a and b are 500 and 200 times a difference of roots, 3e-5 off, and a square moves by twice |a| times that
    torch.testing.assert_close(graph.transition.double(), twin.transition, rtol=5e-5, atol=1e-6)
    expected = reference.superpixel_random_walk(target.double(), *twin, 12)
    out = ops.superpixel_random_walk(target, graph=graph)
    assert (out - expected).abs().max() <= 1e-5 * expected.max()
    fine = ops.superpixel_random_walk(target.double(), graph=twin)
    torch.testing.assert_close(fine, expected, rtol=1e-12, atol=1e-12)
    single = reference.superpixel_graph(segments, image, sigma, squared, n, True)
    single_out = reference.superpixel_random_walk(target, segments, *single, 12)
    assert (single_out - expected).abs().max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_native_equals_twin_in_every_dtype(dtype, image_dtype):
    target, segments, image = random_case(2, 5, 19, 22, 30, dtype)
    image = (image * 255).to(torch.uint8) if image_dtype == torch.uint8 else image.to(image_dtype)
    graph = ops.superpixel_graph(segments, image, num_segments=30)
    twin = reference.superpixel_graph(segments, image, 2.0, False, 30, True)
    assert graph.transition.dtype == twin[3].dtype
    torch.testing.assert_close(graph.transition, twin[3], rtol=1e-4, atol=1e-5)
    out = ops.superpixel_random_walk(target, graph=graph)
    assert out.dtype == dtype
    torch.testing.assert_close(out, reference.superpixel_random_walk(target, segments, *twin, 12), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("batch, size", [(1, (350, 331)), (3, (150, 131))])
def test_threads_do_not_matter(same_bits_on_any_threads, batch, size):
    """Large enough that threads share the bands, the pieces and the maps of one image."""
    target, segments, image = random_case(batch, 13, *size, 90)

    def both():
        graph = ops.superpixel_graph(segments, image, num_segments=90)
        return (*graph, ops.superpixel_random_walk(target, graph=graph))

    same_bits_on_any_threads(both)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("op", ["superpixel_graph", "superpixel_random_walk"])
def test_a_label_too_large_under_compile(op):
    """Nobody looks at the labels before the op there: the message has to come from it, whatever thread has met them."""
    target, segments, image = random_case(4, 2, 60, 70, 9)
    graph = ops.superpixel_graph(segments, image, num_segments=9)
    if op == "superpixel_graph":
        args = (segments + 5, image, 2.0, False, 9, True)
    else:
        args = (target, segments + 5, *graph[1:], 12)
    if ops.backends()[op]["cpu"].backend != "native":
        pytest.skip("the reference looks up whatever the label says")
    with pytest.raises(RuntimeError, match=r"segments must be in \[0, 9\)"):
        getattr(torch.ops.camguide_fast, op)(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_not_a_number_stays_in_its_superpixel(dtype):
    """Pieces are read as whole vectors: what lies behind one must not reach it."""
    target, segments, image = random_case(1, 7, 37, 45, 60, dtype)
    spoilt = target.clone()
    spoilt[:, 2, segments[0] == 11] = math.nan
    clean = ops.superpixel_random_walk(target, segments, image, iterations=0, num_segments=60)
    out = ops.superpixel_random_walk(spoilt, segments, image, iterations=0, num_segments=60)
    gone = torch.zeros_like(out, dtype=torch.bool)
    gone[:, 2, segments[0] == 11] = True
    assert torch.equal(out.isnan(), gone)
    assert torch.equal(out[~gone], clean[~gone])


def test_one_large_superpixel():
    """A mean over 400,000 pixels keeps its digits."""
    target = torch.rand(1, 2, 500, 800) + torch.tensor([0.0, 1e3]).view(1, 2, 1, 1)
    out = ops.superpixel_random_walk(target, torch.zeros(1, 500, 800, dtype=torch.int32), torch.rand(1, 3, 500, 800))
    torch.testing.assert_close(out[0, :, 0, 0].double(), target.double().mean((2, 3))[0], rtol=1e-7, atol=0)
