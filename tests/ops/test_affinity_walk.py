"""affinity_random_walk, the op and its twin: against the dense matrix power."""

import itertools
import math

import cv2
import pytest
import torch

from camguide_fast import ops, reference
from camguide_fast.reference.affinity_walk import half_plane_offsets, segment_cells


def twin(cam, edge, radius=5, beta=10.0, log2_steps=8):
    return reference.affinity_random_walk(cam, edge, radius, beta, log2_steps)


@pytest.fixture(params=[ops.affinity_random_walk, twin], ids=["op", "twin"])
def walk(request):
    return request.param


def distance_to_segment(y, x, dy, dx):
    """Distance of (y, x) to the closest point of the segment (0, 0)-(dy, dx)."""
    t = min(max((y * dy + x * dx) / (dy * dy + dx * dx), 0), 1)
    return math.hypot(y - t * dy, x - t * dx)


def dense_walk(cam, edge, radius=5, beta=10, log2_steps=8):
    """The definition with the matrix A of all pairs of cells, for one image; fp64."""
    (_, k, h, w), edge = cam.shape, edge[0, 0].tolist()
    a = torch.eye(h * w, dtype=torch.float64)
    near = [(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)]
    for dy, dx in near:
        if not 0 < math.hypot(dy, dx) < radius:
            continue
        path = [(y, x) for y, x in near if distance_to_segment(y, x, dy, dx) < 1 - 1e-12]
        for y, x in itertools.product(range(h), range(w)):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                highest = max(edge[y + py][x + px] for py, px in path)
                a[y * w + x, (y + dy) * w + x + dx] = (1 - highest) ** beta
    t = a / a.sum(0, keepdim=True)
    source = (cam.double() * (1 - torch.tensor(edge, dtype=torch.float64))).view(k, h * w)
    return (source @ torch.linalg.matrix_power(t, 2**log2_steps)).view(1, k, h, w)


def case(b, k, h, w, dtype=torch.float64):
    return torch.rand(b, k, h, w, dtype=dtype), torch.rand(b, 1, h, w, dtype=dtype) ** 4


def test_offsets():
    assert [len(half_plane_offsets(r)) for r in (1, 2, 5, 10)] == [0, 4, 34, 152]
    both = {o for dy, dx in half_plane_offsets(5) for o in [(dy, dx), (-dy, -dx)]}
    assert len(both) == 68 and (0, 5) not in both and (3, 4) not in both  # strictly inside the radius


@pytest.mark.parametrize("radius", [5, 10])
def test_paths_equal_the_distance_to_the_segment(radius):
    near = list(itertools.product(range(-radius - 1, radius + 2), repeat=2))
    for dy, dx in half_plane_offsets(radius):
        expected = {(y, x) for y, x in near if distance_to_segment(y, x, dy, dx) < 1 - 1e-12}
        assert set(segment_cells(dy, dx)) == expected
        assert {(0, 0), (dy, dx)} <= expected
    assert segment_cells(0, 2) == [(0, 0), (0, 1), (0, 2)]
    assert segment_cells(1, 1) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_by_hand():
    cam, edge = torch.tensor([1.0, 0, 0]).view(1, 1, 1, 3), torch.tensor([0, 0.5, 0]).view(1, 1, 1, 3)
    # A = [[1, 1/2, 1/2], [1/2, 1, 1/2], [1/2, 1/2, 1]] at beta 1: the middle cell bars both of its neighbours.
    result = ops.affinity_random_walk(cam, edge, radius=3, beta=1, log2_steps=0)
    torch.testing.assert_close(result, torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 1, 3))
    # At radius 2 cell 2 is no neighbour of cell 0, and the columns sum to 3/2, 2, 3/2.
    result = ops.affinity_random_walk(cam, edge, radius=2, beta=1, log2_steps=0)
    torch.testing.assert_close(result, torch.tensor([2 / 3, 0.25, 0]).view(1, 1, 1, 3))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (9, 11), (17, 13)], ids=str)
def test_equals_the_dense_power(walk, size):
    cam, edge = case(2, 3, *size)
    result = walk(cam, edge)
    for i in range(2):
        torch.testing.assert_close(
            result[i : i + 1], dense_walk(cam[i : i + 1], edge[i : i + 1]), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    "settings",
    [
        dict(radius=1),
        dict(radius=3, beta=2.5),
        dict(radius=12, log2_steps=2),
        dict(beta=0),
        *(dict(log2_steps=n) for n in (0, 1, 5, 10)),
    ],
    ids=str,
)
def test_settings(walk, settings):
    cam, edge = case(1, 2, 6, 8)
    torch.testing.assert_close(walk(cam, edge, **settings), dense_walk(cam, edge, **settings), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_classes_do_not_meet(channels):
    cam, edge = case(1, channels, 7, 19, torch.float32)
    alone = [ops.affinity_random_walk(cam[:, [k]], edge) for k in range(channels)]
    torch.testing.assert_close(ops.affinity_random_walk(cam, edge), torch.cat(alone, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [(94, 125), (40, 16), (16, 33), (2, 200)], ids=str)
def test_fp32_at_sizes_of_photographs(walk, size):
    """fp64, which the dense power confirms, is the oracle where the matrix would not fit."""
    cam, edge = case(1, 3, *size, torch.float32)
    exact = ops.affinity_random_walk(cam.double(), edge.double())
    difference = (walk(cam, edge) - exact).abs()
    assert (difference <= 3e-5 * exact).all() and difference.max() <= 1e-5 * exact.max()


def test_a_walk_is_its_halves_in_turn():
    """No truncation shows: 2^9 steps are twice 2^8."""
    cam, edge = case(1, 2, 20, 30)
    half = ops.affinity_random_walk(cam, edge)
    again = ops.affinity_random_walk(half / (1 - edge), edge)  # the walk begins with cam * (1 - edge)
    torch.testing.assert_close(again, ops.affinity_random_walk(cam, edge, log2_steps=9), rtol=1e-11, atol=0)


def test_same_bits_twice_and_for_any_number_of_threads():
    cam, edge = case(2, 5, 50, 61, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.affinity_random_walk(cam, edge))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_real_image(walk, voc):
    """CAM-like blobs on a photograph's gradient, the edges an AffinityNet would give, at 32 x 40 cells."""
    image = cv2.imread(str(sorted((voc / "JPEGImages").glob("*.jpg"))[0]))
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (40, 32), interpolation=cv2.INTER_AREA).astype("float32")
    norm = torch.from_numpy(cv2.magnitude(cv2.Scharr(grey, -1, 1, 0), cv2.Scharr(grey, -1, 0, 1)))
    edge = (norm / norm.max()).view(1, 1, 32, 40)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 40), indexing="ij")
    cam = torch.stack([torch.exp(-8 * ((y - c) ** 2 + (x - c) ** 2)) for c in (-0.4, 0.1, 0.5)])[None]
    exact = dense_walk(cam, edge)
    for dtype, bound in [(torch.float32, 1e-5), (torch.float64, 1e-10)]:
        result = walk(cam.to(dtype), edge.to(dtype))
        assert ((result - exact).abs() <= bound * exact).all()


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str)
def test_half_precision(walk, dtype, bound):
    cam, edge = (x.to(dtype) for x in case(1, 2, 9, 11))
    result = walk(cam, edge)
    exact = ops.affinity_random_walk(cam.double(), edge.double())
    assert result.dtype == dtype
    assert (result - exact).abs().max() <= bound * exact.abs().max()


def test_dtypes_may_differ():
    cam, edge = case(1, 2, 9, 11, torch.float32)
    for first, second in itertools.product((torch.float64, torch.float32, torch.float16, torch.bfloat16), repeat=2):
        x, e = cam.to(first), edge.to(second)
        exact = ops.affinity_random_walk(x.double(), e.double())
        result = ops.affinity_random_walk(x, e)
        assert result.dtype == first
        assert (result - exact).abs().max() <= max(16 * torch.finfo(first).eps, 1e-12) * exact.max()


def test_what_a_walk_keeps(walk):
    flat = torch.full((1, 1, 12, 9), 0.7, dtype=torch.float64)
    none = torch.zeros_like(flat)
    assert torch.equal(walk(flat.float(), none.float()), flat.float())  # not even rounding moves it
    cam, edge = case(1, 2, 12, 9)
    # A is symmetric, so what a cell holds times its column sum is only moved about; without edges A counts neighbours.
    disc = [(y, x) for y in range(-4, 5) for x in range(-4, 5) if y * y + x * x < 25]
    count = torch.tensor(
        [[sum(0 <= i + y < 12 and 0 <= j + x < 9 for y, x in disc) for j in range(9)] for i in range(12)]
    )
    result = walk(cam, none, log2_steps=3)
    torch.testing.assert_close((result * count).sum((2, 3)), (cam * count).sum((2, 3)))
    for turn in (lambda t: t.flip(2), lambda t: t.flip(3), lambda t: t.transpose(2, 3)):
        expected = turn(walk(cam, edge, log2_steps=4))
        torch.testing.assert_close(walk(turn(cam), turn(edge), log2_steps=4), expected)


def test_a_closed_wall_holds(walk):
    edge = torch.zeros(1, 1, 20, 20)
    for i in range(20):  # a diagonal wall, one cell wide: its cells touch at their corners only
        edge[0, 0, i, i] = 1
    cam = torch.ones(20, 20).tril(-1)[None, None]
    result = walk(cam, edge)
    torch.testing.assert_close(result, cam)


def test_strides_and_detached():
    cam, edge = case(2, 3, 9, 11, torch.float32)
    expected = ops.affinity_random_walk(cam, edge, log2_steps=2)
    strided = ops.affinity_random_walk(cam.to(memory_format=torch.channels_last), edge.mT.contiguous().mT, log2_steps=2)
    torch.testing.assert_close(strided, expected)
    assert not ops.affinity_random_walk(cam.requires_grad_(), edge, log2_steps=0).requires_grad


def test_opcheck_and_compile():
    cam, edge = case(1, 2, 6, 7, torch.float32)
    torch.library.opcheck(torch.ops.camguide_fast.affinity_random_walk.default, (cam, edge, 3, 10.0, 2))

    def scaled(cam):
        return 2 * ops.affinity_random_walk(cam, edge, log2_steps=2)

    torch.testing.assert_close(torch.compile(scaled, fullgraph=True, backend="aot_eager")(cam), scaled(cam))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(cam=torch.zeros(3, 4, 4)), "cam must have 4"),
        (dict(cam=torch.zeros(1, 2, 4, 4, dtype=torch.int32)), "cam must be one of"),
        (dict(edge=torch.zeros(1, 2, 4, 4)), r"edge must have shape \(1, 1, 4, 4\)"),
        (dict(edge=torch.full((1, 1, 4, 4), 1.5)), r"edge must hold probabilities in \[0, 1\], got \[1.5, 1.5\]"),
        (dict(edge=torch.full((1, 1, 4, 4), float("nan"))), "edge must hold probabilities"),
        (dict(radius=0), "radius"),
        (dict(radius=2.5), "radius"),
        (dict(beta=-1), "beta"),
        (dict(log2_steps=-1), "log2_steps"),
    ],
)
def test_errors(change, message):
    arguments = dict(cam=torch.zeros(1, 2, 4, 4), edge=torch.zeros(1, 1, 4, 4))
    with pytest.raises((ValueError, TypeError), match=message):
        ops.affinity_random_walk(**arguments | change)
