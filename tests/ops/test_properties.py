"""Whatever is finite and of the right shape gives what the reference gives, forward and backward: shapes, layouts,
types and values that nobody thought of. `pytest --hypothesis-profile nightly` tries fifty times as many."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camguide_fast import ops, reference

SIDES, BATCHES = st.integers(1, 23), st.integers(1, 3)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
BOUNDS = {torch.float64: 1e-8, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
fewer = settings(max_examples=settings().max_examples // 4)  # where the reference is slow
GAUSSIAN, BILATERAL = [3.0, 3.0, 3.0], [20.0, 20.0, 9.0, 9.0, 9.0, 5.0]  # as the reference takes its terms

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x,
    "blocks": lambda x: (4 * x).floor() / 4,
    "one value": lambda x: torch.full_like(x, 0.3),
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "few": lambda x: torch.where(x > 0.9, x, 0),
    "tiny": lambda x: x * 1e-6,
    "an edge": lambda x: (torch.arange(x.shape[-1]) >= x.shape[-1] // 2).to(x).expand_as(x).clone(),
}


@st.composite
def tensors(draw, channels: int, batch: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] in [0, 1], in any of three layouts."""
    values = torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    values = KINDS[draw(st.sampled_from(sorted(KINDS)))](values.double()).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "channels last", "strided"]))
    if layout == "channels last":
        return values.contiguous(memory_format=torch.channels_last)
    return values.transpose(2, 3).contiguous().transpose(2, 3) if layout == "strided" else values


@st.composite
def problems(draw):
    """Maps, an image of their size (bytes or floats), tags."""
    batch, size, dtype = draw(BATCHES), (draw(SIDES), draw(SIDES)), draw(DTYPES)
    k = draw(st.integers(1, 5))
    maps, image = draw(tensors(k, batch, size, dtype)), draw(tensors(3, batch, size, dtype))
    if draw(st.booleans()):
        image = (255 * image.double()).round().to(torch.uint8)
    tags = torch.tensor([[draw(st.booleans()) for _ in range(k)] for _ in range(batch)]).float()
    return maps, image, tags


def compare(run: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Results and gradients, beside those in fp64."""
    leaf, leaf_64 = x.detach().clone().requires_grad_(), x.detach().double().requires_grad_()
    result, expected = run(leaf), exact(leaf_64)
    close(result, expected, BOUNDS[x.dtype])
    upstream = torch.ones_like(expected)
    (grad,) = torch.autograd.grad(result, leaf, upstream.to(result))
    (expected,) = torch.autograd.grad(expected, leaf_64, upstream)
    close(grad, expected, BOUNDS[x.dtype])


def close(result: Tensor, expected: Tensor, bound: float) -> None:
    assert result.isfinite().all()
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert (result.double() - expected.double()).abs().max() <= bound * scale


@given(problems())
def test_cam_normalize(problem):
    maps, _, _ = problem
    result = ops.cam_normalize(maps - 0.4)
    close(result, reference.cam_normalize((maps - 0.4).double(), 1e-5)[0], BOUNDS[maps.dtype])


@fewer
@given(problems(), st.integers(1, 9), st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]))
def test_guided_filter(problem, radius, eps):
    maps, image, _ = problem
    guide = image.to(maps.dtype) / 255 if image.dtype == torch.uint8 else image
    wide = guide.double()
    wide_eps = max(eps, 1e-3) if maps.dtype in (torch.float16, torch.bfloat16) else eps
    leaf = maps.detach().clone().requires_grad_()
    result, exact = (
        ops.guided_filter(leaf, guide, radius, wide_eps),
        reference.guided_filter(maps.double(), wide, radius, wide_eps),
    )
    bound = BOUNDS[maps.dtype] if maps.dtype != torch.float32 else 1e-2  # down to eps 1e-6
    close(result, exact, bound)
    (grad,) = torch.autograd.grad(result.double().sum(), leaf)
    close(grad, reference.guided_filter(torch.ones_like(exact), wide, radius, wide_eps, True), bound)


@given(problems(), st.sampled_from([1, 3, 7]))
def test_local_consistency_loss(problem, window):
    maps, _, _ = problem
    smooth = 1e-2 + maps  # relu's corner has no gradient of its own
    compare(
        lambda x: ops.local_consistency_loss(x, window),
        lambda x: reference.local_consistency_loss(x, window, 1e-5, None),
        smooth,
    )


@given(problems(), SIDES, SIDES)
def test_edge_support(problem, h, w):
    _, image, _ = problem
    size = [min(h, image.shape[2]), min(w, image.shape[3])]
    close(ops.edge_support(image, size), reference.edge_support(image.double(), size), 1e-3)


@given(problems(), st.integers(0, 2**31))
def test_target_nll(problem, seed):
    maps, _, tags = problem
    b, k, h, w = maps.shape
    target = torch.randint(0, k + 1, (b, h, w), generator=torch.Generator().manual_seed(seed))
    target[:, :: 2 + seed % 3] = 255
    compare(
        lambda x: ops.target_nll(x, target, tags),
        lambda x: reference.target_nll(x, target, tags, 255, 0.01, False),
        0.1 + 0.8 * maps,
    )


@given(problems(), st.floats(-0.1, 1.1), SIDES, SIDES)
def test_threshold_labels(problem, tau, h, w):
    maps, _, tags = problem
    maps = maps.double()
    taus = torch.full((len(maps),), tau, dtype=torch.float64)
    expected = reference.threshold_labels(maps, tags, taus, [h, w], None).long()
    result = ops.threshold_labels(maps, tags, taus, (h, w)).long()
    large = torch.nn.functional.interpolate(maps, (h, w), mode="bilinear") * (tags > 0)[:, :, None, None]
    choices = torch.cat([taus[:, None, None, None].expand(-1, 1, h, w), large], 1)
    taken, best = (choices.gather(1, labels[:, None]) for labels in (result, expected))
    assert (taken - best).abs().max() <= 1e-12  # of two that are equal up to rounding either


@given(problems(), st.sampled_from([1, 3, 5, 15, 31]))
def test_label_closing(problem, kernel):
    maps, _, _ = problem
    labels = (maps.double().sum(1) * 3).floor().clamp(0, 6).to(torch.uint8)
    assert torch.equal(ops.label_closing(labels, kernel), reference.label_closing(labels, kernel, 0, 255))


@fewer
@given(problems(), st.integers(1, 60), st.sampled_from([0.0, 0.5]))
def test_slic(problem, n, factor):
    _, image, _ = problem
    assert torch.equal(ops.slic(image, n, min_size_factor=factor), reference.slic(image, n, 10.0, 10, factor)[0])


@given(problems(), st.integers(1, 60), st.integers(0, 15))
def test_superpixel_random_walk(problem, n, iterations):
    maps, image, _ = problem
    walked = ops.superpixel_random_walk(maps, ops.slic(image, n), image, iterations=iterations)
    assert walked.isfinite().all()
    low, high = maps.double().amin((0, 2, 3)), maps.double().amax((0, 2, 3))
    slack = BOUNDS[maps.dtype]
    inside = (walked.double() >= (low - slack)[:, None, None]) & (walked.double() <= (high + slack)[:, None, None])
    assert inside.all()  # means of means


@fewer
@given(problems(), st.integers(0, 3))
def test_dense_crf(problem, iterations):
    maps, image, _ = problem
    q = ops.dense_crf(maps, image, iterations, (3.0, 3.0), (20.0, 9.0, 5.0))
    exact = reference.dense_crf(maps.double(), image, iterations, GAUSSIAN, BILATERAL, None)
    close(q, exact, max(1e-3, BOUNDS[maps.dtype]))
    assert (q.double().sum(1) - 1).abs().max() <= BOUNDS[maps.dtype]


@given(problems(), st.integers(2, 6), st.integers(0, 8))
def test_affinity_random_walk(problem, radius, steps):
    maps, image, _ = problem
    edge = image[:, :1].double().to(maps.dtype) / (255 if image.dtype == torch.uint8 else 1)
    walked = ops.affinity_random_walk(maps, edge, radius, 10.0, steps)
    exact = reference.affinity_random_walk(maps.double(), edge.double(), radius, 10.0, steps)
    close(walked, exact, BOUNDS[maps.dtype])


@given(problems(), st.integers(1, 9))
def test_confusion_matrix(problem, classes):
    maps, _, _ = problem
    first = (maps[:, 0].double() * classes).floor().clamp(0, classes - 1).to(torch.uint8)
    second = first.flip(1).masked_fill(first == 0, 255)
    expected, _ = reference.confusion_matrix(first, second, classes, 255)
    assert torch.equal(ops.confusion_matrix(first, second, classes), expected)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_values_are_in_range(kind):
    values = KINDS[kind](torch.rand(2, 3, 4, 5))
    assert values.min() >= 0 and values.max() <= 1
