"""superpixel_random_walk, superpixel_graph: Eq. 13-16."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from skimage.color import rgb2lab
from skimage.segmentation import slic as skimage_slic

from camguide_fast import ops, reference

BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (119, 119, 119)


def dense(target, segments, image, sigma=2.0, iterations=12, squared=False):
    """Eq. 13-16 with dense matrices in fp64; target [K, H, W], segments [H, W], image [H, W, 3] uint8."""
    n = segments.max() + 1
    one_hot = (segments.ravel() == np.arange(n)[:, None]).astype(float)
    mean = one_hot / np.maximum(one_hot.sum(1, keepdims=True), 1)
    colour = mean @ rgb2lab(image / 255.0).reshape(-1, 3)
    near = np.zeros((n, n), bool)
    for a, b in ((segments[:, :-1], segments[:, 1:]), (segments[:-1], segments[1:])):
        near[a, b] = near[b, a] = True
    np.fill_diagonal(near, False)
    norm = np.linalg.norm(colour[:, None] - colour[None], axis=-1)
    w = np.where(near, np.exp(-(norm**2 if squared else norm) / (2 * sigma**2)), 0)
    total = w.sum(1, keepdims=True)
    p = np.where(total > 0, w / np.where(total > 0, total, 1), np.eye(n))
    u = np.linalg.matrix_power(p, iterations) @ (mean @ target.reshape(len(target), -1).T)
    return u[segments.ravel()].T.reshape(target.shape)


@pytest.fixture(scope="module")
def natural():
    """A crop, scikit-image's superpixels with a gap in the labels, and class maps; with a batch dimension."""
    image = skimage.data.chelsea()[60:150, 100:230]
    segments = skimage_slic(image, 90, start_label=0).astype(np.int64)
    segments[segments == 20] = 21  # label 20 is empty, 21 not connected
    target = np.random.default_rng(0).random((5, *segments.shape)) ** 4
    return target, segments, image


def tensors(target, segments, image):
    rgb = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return torch.from_numpy(target)[None], torch.from_numpy(segments)[None], rgb[None]


def strip(colours, values):
    """One pixel a superpixel, side by side: target [1, 1, 1, n], segments, image."""
    image = torch.tensor(colours, dtype=torch.uint8).T[None, :, None]
    return (
        torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1),
        torch.arange(len(values))[None, None],
        image,
    )


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(sigma=5.0, squared=True), dict(sigma=8.0, iterations=3), dict(iterations=0)],
    ids=str,
)
def test_equals_dense_matrices(natural, settings):
    expected = dense(*natural, **settings)
    target, segments, image = tensors(*natural)
    names = {"sigma": "sigma_color"}
    arguments = {names.get(k, k): v for k, v in settings.items()}
    np.testing.assert_allclose(
        ops.superpixel_random_walk(target, segments, image, **arguments)[0], expected, rtol=1e-9, atol=1e-12
    )
    single = ops.superpixel_random_walk(target.float(), segments, image, **arguments)
    assert np.abs(single[0].double().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert single.dtype == torch.float32


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str)
def test_precision(natural, dtype, bound):
    target, segments, image = tensors(*natural)
    target = target.to(dtype)
    out = ops.superpixel_random_walk(target, segments, image)
    exact = ops.superpixel_random_walk(target.double(), segments, image)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= bound * exact.max()


def test_two_nodes_swap_their_values():
    """Without a self-loop a pair oscillates; whatever its colours are."""
    target, segments, image = strip([BLACK, WHITE], [3.0, 8.0])
    assert ops.superpixel_random_walk(target, segments, image, iterations=1).flatten().tolist() == [8, 3]
    assert ops.superpixel_random_walk(target, segments, image).flatten().tolist() == [3, 8]


@pytest.mark.parametrize("squared", [False, True])
def test_three_nodes_by_hand(squared):
    target, segments, image = strip([BLACK, GREY, WHITE], [1.0, 0.0, 5.0])
    lightness = rgb2lab(np.array([[BLACK, GREY, WHITE]]) / 255.0)[0, :, 0]
    d = np.diff(lightness)
    w = np.exp(-(d**2 if squared else d) / (2 * 20.0**2))
    middle = (w[0] * 1 + w[1] * 5) / w.sum()
    once = ops.superpixel_random_walk(target, segments, image, 20.0, 1, squared).flatten().tolist()
    assert once == pytest.approx([0, middle, 0], rel=1e-6)
    twice = ops.superpixel_random_walk(target, segments, image, 20.0, 2, squared).flatten().tolist()
    assert twice == pytest.approx([middle, 0, middle], rel=1e-6)


def test_isolated_node_keeps_its_value():
    target = torch.rand(1, 3, 4, 5)
    out = ops.superpixel_random_walk(target, torch.zeros(1, 4, 5, dtype=torch.int32), torch.rand(1, 3, 4, 5))
    torch.testing.assert_close(out, target.mean((2, 3), keepdim=True).expand_as(out))
    one = ops.superpixel_random_walk(
        target[..., :1, :1], torch.full((1, 1, 1), 4), torch.rand(1, 3, 1, 1), num_segments=9
    )
    assert torch.equal(one, target[..., :1, :1])


def test_far_colours_do_not_underflow():
    """exp(-100 / (2 * 0.01^2)) is 0 in any float, its share of a row is not."""
    target, segments, image = strip([BLACK, WHITE, BLACK], [1.0, 5.0, 3.0])
    out = ops.superpixel_random_walk(target.float(), segments, image.float() / 255, 0.01, 1)
    assert out.flatten().tolist() == pytest.approx([5, 2, 5])


def test_graph(natural):
    target, segments, image = tensors(*natural)
    graph = ops.superpixel_graph(segments, image, num_segments=200)
    n = segments.max() + 1
    assert graph.counts.shape == (1, 200) and graph.offsets.shape == (1, 201)
    assert torch.equal(graph.counts[0].long(), torch.bincount(segments.flatten(), minlength=200))
    offsets = graph.offsets[0].tolist()
    pairs = set()
    for s in range(200):
        row = graph.neighbours[0, offsets[s] : offsets[s + 1]].tolist()
        assert row == sorted(set(row) - {s})
        assert not row or math.isclose(graph.transition[0, offsets[s] : offsets[s + 1]].sum(), 1, rel_tol=1e-6)
        pairs |= {(s, other) for other in row}
    assert not any(s in (20, *range(n, 200)) for s, _ in pairs)  # the empty ones
    assert pairs == {(b, a) for a, b in pairs}
    expected = ops.superpixel_random_walk(target.float(), segments, image)
    assert torch.equal(ops.superpixel_random_walk(target.float(), graph=graph), expected)  # also with the wider bound
    more = torch.cat([target, target], 1).float()
    assert torch.equal(ops.superpixel_random_walk(more, graph=graph)[:, 5:], expected)


def test_worst_case_of_edges():
    """Labels that touch as many others as the image allows fill the lists exactly."""
    segments = torch.arange(12).view(1, 3, 4)
    graph = ops.superpixel_graph(segments, torch.rand(1, 3, 3, 4))
    assert graph.neighbours.shape[1] == graph.offsets[0, -1] == 34  # 2 * (3 * 3 + 2 * 4)
    graph = ops.superpixel_graph(torch.tensor([[[0, 1, 2, 0, 1]]]), torch.rand(1, 3, 1, 5))
    assert graph.neighbours[0].tolist() == [1, 2, 0, 2, 0, 1]


def test_lists_are_as_long_as_the_batch_needs():
    """Under torch.compile, which cannot look, as long as it might need. What is left free is 0."""
    segments = torch.tensor([[[0, 0, 1, 1]], [[0, 1, 2, 3]]], dtype=torch.int32)
    image = torch.rand(2, 3, 1, 4)
    graph = ops.superpixel_graph(segments, image)
    assert graph.offsets[:, -1].tolist() == [2, 6]
    assert graph.neighbours.tolist() == [[1, 0, 0, 0, 0, 0], [1, 0, 2, 1, 3, 2]]
    assert graph.transition[0].tolist() == [1, 1, 0, 0, 0, 0]
    halves = torch.tensor([0, 0, 1, 1], dtype=torch.int32).expand(1, 3, 4)
    for exact, edges in ((True, 2), (False, 34)):
        args = (halves, torch.rand(1, 3, 3, 4), 2.0, False, 9, exact)
        ours, twin = torch.ops.camguide_fast.superpixel_graph(*args), reference.superpixel_graph(*args)
        assert ours[2].shape == (1, edges) and torch.equal(ours[2], twin[2])
        assert torch.equal(ours[3], twin[3])
    image = torch.rand(1, 3, 3, 4)
    longest = torch.compile(lambda: ops.superpixel_graph(halves, image, num_segments=9), fullgraph=True)()
    assert longest.neighbours.shape == (1, 34)  # the image has no more; where nobody compiles, it has 2


def test_batch_strides_and_float_image(natural):
    target, segments, image = tensors(*natural)
    target, flipped = target.float(), (t.flip(-1) for t in tensors(*natural))
    expected = ops.superpixel_random_walk(target, segments, image)
    second_target, second_segments, second_image = flipped
    batch = [
        torch.cat(p) for p in ((target, second_target.float()), (segments, second_segments), (image, second_image))
    ]
    out = ops.superpixel_random_walk(*batch)
    assert torch.equal(out[:1], expected)
    torch.testing.assert_close(out[1:], expected.flip(-1))
    strided = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (target, segments, image))
    assert torch.equal(ops.superpixel_random_walk(*strided), expected)
    assert torch.equal(ops.superpixel_random_walk(target, segments.int(), image.float() / 255), expected)


def test_opcheck_and_compile():
    target, segments, image = (
        torch.rand(2, 3, 6, 7),
        torch.randint(0, 9, (2, 6, 7), dtype=torch.int32),
        torch.rand(2, 3, 6, 7),
    )
    for exact in (True, False):
        torch.library.opcheck(torch.ops.camguide_fast.superpixel_graph.default, (segments, image, 2.0, False, 9, exact))
    graph = ops.superpixel_graph(segments, image, num_segments=9)
    torch.library.opcheck(torch.ops.camguide_fast.superpixel_random_walk.default, (target, *graph, 12))

    @torch.compile(fullgraph=True)
    def both(target, segments, image):
        graph = ops.superpixel_graph(segments, image, num_segments=9)
        return ops.superpixel_random_walk(target, graph=graph), ops.superpixel_random_walk(
            target, segments, image, num_segments=9
        )

    for out in both(target, segments, image):
        torch.testing.assert_close(out, ops.superpixel_random_walk(target, graph=graph))


def case():
    return dict(
        target=torch.zeros(1, 2, 4, 4),
        segments=torch.zeros(1, 4, 4, dtype=torch.int64),
        image=torch.zeros(1, 3, 4, 4),
    )


GRAPH = ops.superpixel_graph(case()["segments"], case()["image"])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(target=torch.zeros(2, 4, 4)), "target must have 4"),
        (dict(target=torch.zeros(1, 2, 4, 5)), "target must have shape"),
        (dict(target=torch.zeros(1, 2, 4, 4, requires_grad=True)), "target requires grad"),
        (dict(segments=torch.zeros(1, 4, 4)), "segments must be one of"),
        (dict(segments=torch.full((1, 4, 4), -1)), r"segments must be in \[0, 1\)"),
        (dict(segments=torch.full((1, 4, 4), 7), num_segments=7), r"segments must be in \[0, 7\)"),
        (dict(segments=None), "needs segments and image, or a graph"),
        (dict(image=torch.zeros(1, 3, 4, 5)), "image must have shape"),
        (dict(image=torch.zeros(1, 3, 4, 4, requires_grad=True)), "image requires grad"),
        (dict(image=torch.full((1, 3, 4, 4), torch.inf)), "image holds NaN"),
        (dict(image=torch.zeros(1, 3, 4, 4, dtype=torch.int32)), "image must be one of"),
        (dict(image=torch.zeros(1, 3, 4, 4, dtype=torch.int32), target=torch.zeros(1, 2, 4, 4).double()), "image must"),
        (dict(sigma_color=0.0), "sigma_color"),
        (dict(sigma_color=1e-200), "sigma_color"),
        (dict(squared="no"), "squared must be True or False"),
        (dict(iterations=-1), "iterations"),
        (dict(num_segments=0), "num_segments"),
        (dict(num_segments=2**40), "num_segments must be less than"),
        (dict(graph=GRAPH), "either a graph, or"),
        (dict(graph=GRAPH, segments=None, image=None, sigma_color=3.0), "either a graph, or"),
        (dict(graph=GRAPH, segments=None, image=None, squared=True), "either a graph, or"),
        (dict(graph=GRAPH, segments=None, image=None, num_segments=1), "either a graph, or"),
        (dict(graph=tuple(GRAPH), segments=None, image=None), "graph must be a SuperpixelGraph, got tuple"),
    ],
)
def test_errors(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.superpixel_random_walk(**case() | change)


def test_no_gradient_is_fine_when_none_is_recorded():
    arguments = case() | dict(target=torch.zeros(1, 2, 4, 4, requires_grad=True))
    with torch.no_grad():
        assert not ops.superpixel_random_walk(**arguments).requires_grad
