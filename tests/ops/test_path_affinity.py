"""path_affinity_loss, the op and its twin: against the loss pair by pair."""

import itertools

import pytest
import torch
from support.opchecks import check_loss

from camguide_fast import ops, reference
from camguide_fast.losses import PathAffinityLoss
from camguide_fast.reference.affinity_walk import half_plane_offsets, segment_cells

OP = ops.path_affinity_loss
SHARES = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


def twin(edge, target, radius=10, ignore=255):
    return reference.path_affinity_loss(edge, target, radius, ignore)


IMPLEMENTATIONS = {"op": OP, "reference": twin}  # the row that the dispatcher chooses, and the twin


@pytest.fixture(params=IMPLEMENTATIONS)
def loss_of(request):
    return IMPLEMENTATIONS[request.param]


def brute_force(edge, target, radius=10, ignore=255):
    """The loss pair by pair, as autograd differentiates it."""
    b, _, h, w = edge.shape
    parts = {"bg": [], "fg": [], "neg": []}
    for i, y, x, (dy, dx) in itertools.product(range(b), range(h), range(w), half_plane_offsets(radius)):
        if not (y + dy < h and 0 <= x + dx < w):
            continue
        here, there = target[i, y, x].item(), target[i, y + dy, x + dx].item()
        if ignore in (here, there):
            continue
        path = torch.stack([edge[i, 0, y + py, x + px] for py, px in segment_cells(dy, dx)])
        a = 1 - path.max(0).values  # max(dim): of equal cells the first gets the gradient
        if here == there:
            parts["fg" if here else "bg"].append(-(a + 1e-5).log())
        else:
            parts["neg"].append(-(1 + 1e-5 - a).log())
    means = torch.stack([torch.stack(p).mean() if p else edge.new_zeros(()) for p in parts.values()])
    return (means * SHARES).sum(), means.detach()


def case(b, h, w, dtype=torch.float64, classes=3):
    target = torch.randint(0, classes, (b, -(-h // 3), -(-w // 3))).repeat_interleave(3, 1).repeat_interleave(3, 2)
    target = target[:, :h, :w].clone()
    target[torch.rand(b, h, w) < 0.1] = 255
    return torch.rand(b, 1, h, w, dtype=dtype), target


def gradient(loss_of, edge, target, *options):
    leaf = edge.detach().clone().requires_grad_()
    loss, parts = loss_of(leaf, target, *options)
    assert not parts.requires_grad
    return loss.detach(), parts, torch.autograd.grad(3 * loss, leaf)[0]


@pytest.mark.parametrize(
    "size, radius",
    [((6, 7), 4), ((1, 2), 5), ((3, 9), 10), ((8, 2), 3), ((1, 20), 6), ((31, 5), 4), ((5, 17), 10**9)],
    ids=str,
)
def test_equals_the_definition(loss_of, size, radius):
    edge, target = case(2, *size)
    loss, parts, grad = gradient(loss_of, edge, target, radius)
    near = min(radius, sum(size))
    expected = gradient(brute_force, edge, target, near)
    torch.testing.assert_close((loss, parts, grad), expected, rtol=1e-10, atol=1e-13)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(29, 40), (57, 3), (56, 56), (28, 16), (85, 9)], ids=str)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=str)
def test_equals_the_twin_on_every_size(size, dtype, bound):
    """Several tiles of rows, vectors that end anywhere."""
    edge, target = case(2, *size, dtype)
    loss, parts, grad = gradient(OP, edge, target)
    exact_loss, exact_parts, exact = gradient(twin, edge.double(), target)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=bound, atol=0)
    torch.testing.assert_close(parts.double(), exact_parts, rtol=bound, atol=0)
    assert (grad - exact).abs().max() <= bound * exact.abs().max()


def test_gradcheck(loss_of):
    """Paths without equal maxima: the loss is smooth there."""
    edge = torch.rand(2, 1, 5, 6, dtype=torch.float64).argsort(-1).double() * 0.02
    edge = edge + torch.rand_like(edge) * 0.3 + 0.1
    _, target = case(2, 5, 6)
    assert torch.autograd.gradcheck(lambda e: loss_of(e, target, 4)[0], edge.requires_grad_())


def test_by_hand(loss_of):
    """Three cells in a row, radius 3: two pairs of neighbours, one past the middle cell."""
    edge = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).view(1, 1, 1, 3)
    log = torch.log
    e = torch.tensor(1e-5, dtype=torch.float64)
    loss, parts, grad = gradient(loss_of, edge, torch.tensor([[[0, 0, 2]]]), 3)
    torch.testing.assert_close(parts, torch.stack([-log(0.4 + e), 0 * e, -log(0.6 + e)]))
    torch.testing.assert_close(loss, parts[0] / 4 + parts[2] / 2)
    expected = 3 * torch.stack([0 * e, 0.25 / (0.4 + e) - 0.5 / (0.6 + e), 0 * e])
    torch.testing.assert_close(grad.flatten(), expected)


@pytest.mark.parametrize("radius", [2, 4, 10])
def test_of_equal_cells_the_first(loss_of, radius):
    """Edges on a coarse scale, most maxima equal."""
    edge, target = case(1, 9, 11)
    edge = (edge * 3).round() / 4
    torch.testing.assert_close(gradient(loss_of, edge, target, radius), gradient(brute_force, edge, target, radius))


@pytest.mark.parametrize("label", [0, 2, 255])
def test_one_label_alone(loss_of, label):
    edge = torch.rand(1, 1, 5, 6)
    loss, parts, grad = gradient(loss_of, edge, torch.full((1, 5, 6), label), 3)
    assert (parts > 0).tolist() == [label == 0, label == 2, False]
    assert grad.isfinite().all() and (grad != 0).any() == (label != 255) == (loss > 0)


@pytest.mark.parametrize("size, radius", [((1, 1), 10), ((4, 5), 1)], ids=str)
def test_no_pairs(loss_of, size, radius):
    edge, target = torch.rand(2, 1, *size), torch.zeros(2, *size, dtype=torch.int64)
    loss, parts, grad = gradient(loss_of, edge, target, radius)
    assert loss == 0 and not parts.any() and grad.shape == edge.shape and not grad.any()


def test_other_ignored_label(loss_of):
    edge, target = case(1, 8, 9)
    expected = gradient(loss_of, edge, target, 4)
    torch.testing.assert_close(gradient(loss_of, edge, target.masked_fill(target == 255, 77), 4, 77), expected)
    torch.testing.assert_close(gradient(loss_of, edge, target.masked_fill(target == 255, -1), 4, -1), expected)


def test_certain_edges(loss_of):
    """a = 0 and a = 1, where the slopes are steepest."""
    target = torch.tensor([0, 0, 1, 1]).expand(1, 4, 4)
    for edge in (torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)):
        result = gradient(loss_of, edge, target, 3)
        expected = gradient(loss_of, edge.double(), target, 3)
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


def test_a_nan_is_not_hidden(loss_of):
    edge, target = case(1, 9, 10, torch.float32)
    for at in [(0, 0), (4, 4), (8, 9)]:
        target[0, at[0], at[1]] = 255  # its own pairs do not count
        bad = edge.clone()
        bad[0, 0, at[0], at[1]] = torch.nan
        corner = at != (4, 4)  # on no other pair's path
        assert OP(bad, target)[0].isnan() and (corner or loss_of(bad, target)[0].isnan())


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str)
def test_half_precision(loss_of, dtype, bound):
    edge, target = case(2, 30, 33)
    edge[:, :, ::3], edge[:, :, :, ::7] = 0, 1  # saturated, as a sigmoid in half precision is
    edge = edge.to(dtype)
    loss, parts, grad = gradient(loss_of, edge, target)
    exact_loss, _, exact = gradient(twin, edge.double(), target)
    assert loss.dtype == parts.dtype == torch.float32 and grad.dtype == dtype
    assert abs(loss - exact_loss) <= 1e-5 * exact_loss
    assert (grad.double() - exact).abs().max() <= bound * exact.abs().max()


def test_half_precision_neither_overflows_nor_vanishes():
    """The steepest slope at every path through one cell, and at many cells the flattest."""
    edge = torch.zeros(1, 1, 60, 60, dtype=torch.float16)
    edge[0, 0, 30, 30] = 1
    target = torch.zeros(1, 60, 60, dtype=torch.int64)
    _, stored, scale, _ = torch.ops.camguide_fast.path_affinity_loss(edge, target, 10, 255, True)
    _, _, exact = gradient(twin, edge.double(), target)
    assert stored.isfinite().all()
    torch.testing.assert_close(3 * stored.double() * scale.double(), exact, rtol=2e-3, atol=0)


def test_same_bits(same_bits_on_any_threads):
    edge, target = case(3, 70, 53, torch.float32)
    same_bits_on_any_threads(lambda: torch.ops.camguide_fast.path_affinity_loss(edge, target, 10, 255, True))


def test_an_image_does_not_see_its_neighbours():
    edge, target = case(3, 33, 20)
    target[0], target[2] = 255, 255
    _, _, grad = gradient(OP, edge, target)
    _, _, alone = gradient(OP, edge[1:2], target[1:2])
    assert torch.equal(grad[1:2], alone) and not grad[0].any() and not grad[2].any()


def test_dtypes_strides_and_no_gradient():
    edge, target = case(2, 12, 9, torch.float32)
    expected = gradient(OP, edge, target)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(OP(edge, target.to(dtype))[0], expected[0])
    assert torch.equal(OP(edge, target.clamp(max=100).to(torch.int8), ignore=100)[0], expected[0])
    strided, labels = edge.mT.contiguous().mT, target.mT.contiguous().mT
    assert all(torch.equal(a, b) for a, b in zip(gradient(OP, strided, labels), expected, strict=True))
    with torch.no_grad():
        assert torch.equal(OP(edge, target)[0], expected[0])
        assert torch.ops.camguide_fast.path_affinity_loss(edge, target, 10, 255, False)[1].numel() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OP(edge, target)[0], expected[0])


def test_module():
    edge, target = case(2, 12, 9, torch.float32)
    parts = PathAffinityLoss(4)(edge.requires_grad_(), target)
    loss, means = OP(edge, target, 4)
    assert torch.equal(parts["loss"], loss) and parts["loss"].requires_grad
    assert [parts[name] for name in ("bg", "fg", "neg")] == means.tolist()
    assert "radius=4" in repr(PathAffinityLoss(4))


def test_opcheck_and_compile():
    edge, target = case(2, 5, 6, torch.float32)
    edge.requires_grad_()
    op = torch.ops.camguide_fast.path_affinity_loss.default
    check_loss(op, edge, target, 4, 255)
    compiled = torch.compile(lambda edge: OP(edge * 0.9, target), fullgraph=True)
    for a, b in zip(compiled(edge), OP(edge * 0.9, target), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(edge)[0], edge), torch.autograd.grad(OP(edge * 0.9, target)[0], edge)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(edge=torch.zeros(4, 4)), "edge must have 4"),
        (dict(edge=torch.zeros(1, 2, 4, 4)), r"edge must have shape \(1, 1, 4, 4\)"),
        (dict(edge=torch.full((1, 1, 4, 4), 1.5)), r"edge must hold probabilities in \[0, 1\], got \[1.5, 1.5\]"),
        (dict(target=torch.zeros(1, 4, 5, dtype=torch.int64)), r"target must have shape .* got \(1, 4, 5\)"),
        (dict(target=torch.zeros(1, 4, 4)), "target must be one of"),
        (dict(target=torch.full((1, 4, 4), -1)), "target must hold labels from 0 or ignore=255, got -1"),
        (dict(target=torch.full((1, 4, 4), 2**31)), "target must hold labels"),
        (dict(radius=0), "radius"),
    ],
)
def test_errors(change, message):
    arguments = dict(edge=torch.zeros(1, 1, 4, 4), target=torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises((ValueError, TypeError), match=message):
        OP(**(arguments | change))
