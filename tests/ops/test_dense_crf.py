"""dense_crf, dense_crf_labels: mean field on the permutohedral lattice, as pydensecrf."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.crf import BILATERAL, GAUSSIAN, case, crf, flat, twin

from camguide_fast import ops, reference
from camguide_fast.reference import _permutohedral as permutohedral


@pytest.mark.parametrize("shape", [(1, 1), (2, 61), (31, 33), (32, 32), (32, 64), (64, 65), (40, 101)], ids=str)
@pytest.mark.parametrize("labels", [1, 4, 5, 8, 9, 17])
def test_equals_the_twin(shape, labels):
    """In fp64 to rounding: the same vertices and weights, at the borders of tiles of pixels and of blocks of labels."""
    prob, image = case(shape, labels, batch=2)
    torch.testing.assert_close(crf("op", prob, image), crf("twin", prob, image), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bilateral", [(50.0, 1.0, 10.0), (3.0, 2.0, 5.0), (1e4, 1e4, 9.0), (0.5, 300.0, 3.0)], ids=str)
@pytest.mark.parametrize("gaussian", [(0.3, 2.0), (200.0, 1.0)], ids=str)
def test_any_size_of_lattice(gaussian, bilateral):
    """From one simplex for all pixels to vertices for each pixel alone."""
    prob, image = torch.rand(1, 2, 50, 70, dtype=torch.float64), torch.randint(256, (1, 3, 50, 70)).to(torch.uint8)
    ours, expected = (crf(row, prob, image, 2, gaussian, bilateral) for row in ("op", "twin"))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_several_terms():
    prob, image = case((37, 45))
    near, far = [((3.0, 2.0), 1.5), (5.0, 1.0)], [((40.0, 20.0), (5.0, 9.0, 7.0), 4.0), (10.0, 20.0, 1.0)]
    ours = ops.dense_crf(prob, image, 5, near, far)
    numbers = [3.0, 2.0, 1.5, 5.0, 5.0, 1.0], [40.0, 20.0, 5.0, 9.0, 7.0, 4.0, 10.0, 10.0, 20.0, 20.0, 20.0, 1.0]
    torch.testing.assert_close(ours, reference.dense_crf(prob, image, 5, *numbers, None), rtol=1e-9, atol=1e-12)
    once, twice = ops.dense_crf(prob, image, 5, (3.0, 2.0)), ops.dense_crf(prob, image, 5, [(3.0, 1.0)] * 2)
    torch.testing.assert_close(once, twice, rtol=1e-9, atol=1e-12)
    assert torch.equal(ops.dense_crf(prob, image, 5, [], []), ops.dense_crf(prob, image, 0))
    near_alone = ops.dense_crf(prob, image, 5, near, [])
    torch.testing.assert_close(near_alone, ops.dense_crf(prob, image, 5, near, (50.0, 5.0, 0.0)), rtol=1e-9, atol=1e-12)


def test_settings_of_the_field():
    prob, image = case((16, 20), dtype=torch.float32)
    for use, gaussian, bilateral in [
        ("labels", (3.0, 3.0), (50.0, 5.0, 10.0)),
        ("softmax", (3.0, 3.0), (80.0, 13.0, 10.0)),
        ("clip_es", (1.0, 3.0), (67.0, 3.0, 4.0)),
    ]:
        assert ops.crf_settings(use) == dict(iterations=10, gaussian=gaussian, bilateral=bilateral)
    small = ops.crf_settings("softmax", scale=4)
    assert small == dict(iterations=10, gaussian=(0.75, 3.0), bilateral=(20.0, 13.0, 10.0))
    assert ops.dense_crf(prob, image, **small).shape == prob.shape
    assert ops.dense_crf_labels(prob.argmax(1), image, 3, **ops.crf_settings("labels")).shape == (1, 16, 20)
    with pytest.raises(ValueError, match="use must be one of labels, softmax, clip_es, got 'irn'"):
        ops.crf_settings("irn")
    with pytest.raises(ValueError, match="scale must be a number > 0"):
        ops.crf_settings("labels", 0)


def test_large_images():
    """1920 x 1080: as its upper left corner is, far from the cut."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 27, 48), dtype=np.uint8))
    image = torch.nn.functional.interpolate(image.float(), (1080, 1920), mode="bilinear").to(torch.uint8)
    prob = torch.stack([image[:, 0] / 255, 1 - image[:, 0] / 255], 1)
    settings = (2, (3.0, 3.0), (2.0, 20.0, 5.0))
    q, corner = ops.dense_crf(prob, image, *settings), (Ellipsis, slice(100), slice(100))
    torch.testing.assert_close(q.sum(1), torch.ones(1, 1080, 1920))
    part = ops.dense_crf(prob[..., :200, :200], image[..., :200, :200], *settings)
    torch.testing.assert_close(q[corner], part[corner], rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)], ids=str
)
def test_precision(dtype, bound):
    prob, image = case((23, 31), batch=2)
    prob = prob.to(dtype).double()
    out = ops.dense_crf(prob.to(dtype), image)
    assert out.dtype == dtype
    exact = reference.dense_crf(prob, image, 5, *flat(GAUSSIAN, BILATERAL), None)
    assert (out.double() - exact).abs().max() <= bound
    assert ops.dense_crf(prob, image).dtype == torch.float64


def test_is_the_mean_field_of_its_kernels():
    """Against dense matrices made of the filter's own columns: self term, Potts, order of the steps."""
    prob, image = case((6, 5))
    eye = torch.eye(30, dtype=torch.float64)
    near = permutohedral.blur(twin._gaussian_lattice(6, 5, 3.0, 3.0, torch.float64, prob.device), eye)
    features = twin._bilateral_features(image[0], flat(GAUSSIAN, BILATERAL)[1][:5])
    alike = permutohedral.blur(permutohedral.build(features, torch.float64), eye)
    assert near.diagonal().min() > 0 and alike.diagonal().min() > 0
    p = prob[0].flatten(1).clamp(1e-5, 1)
    q = p / p.sum(0)
    for _ in range(5):
        q = p * torch.exp(3 * q @ near.T + 10 * q @ alike.T)
        q = q / q.sum(0)
    torch.testing.assert_close(ops.dense_crf(prob, image)[0].flatten(1), q, rtol=1e-9, atol=1e-12)


def test_normalisation():
    """Symmetric: D^-1/2 L D^-1/2 has the eigenvector D^1/2 with eigenvalue 1."""
    lattice = permutohedral.build(twin._positions(9, 7, torch.device("cpu")) / 3, torch.float64)
    root = 1 / lattice.weights.sum(1, keepdim=True)  # barycentric weights sum to 1 before they are divided by D^1/2
    torch.testing.assert_close(permutohedral.blur(lattice, root), root, rtol=1e-6, atol=0)


def test_forms_of_input():
    prob, image = case((11, 14), dtype=torch.float32, batch=2)
    expected = ops.dense_crf(prob, image)
    torch.testing.assert_close(expected.sum(1), torch.ones(2, 11, 14))
    same = dict(rtol=0, atol=0)
    torch.testing.assert_close(ops.dense_crf(None, image, unary=-torch.log(prob)), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ops.dense_crf(prob, image.float() / 255), expected, **same)
    torch.testing.assert_close(ops.dense_crf(prob[1:], image[1:]), expected[1:], **same)
    strided = prob.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(ops.dense_crf(strided, image.to(memory_format=torch.channels_last)), expected, **same)
    torch.testing.assert_close(ops.dense_crf(prob, image, iterations=0), prob)
    extreme = torch.zeros(1, 2, 3, 3)
    extreme[:, 0] = 7  # clipped to [1e-5, 1]
    first = ops.dense_crf(extreme, image[:1, :, :3, :3], iterations=0)[0, :, 0, 0]
    torch.testing.assert_close(first, torch.tensor([1 / (1 + 1e-5), 1e-5 / (1 + 1e-5)]))


@pytest.mark.parametrize("labels", [3, 7, 19])
def test_same_bits_with_any_number_of_threads_and_under_autocast(labels):
    prob, image = case((75, 140), labels, torch.float32)
    given = prob.argmax(1)
    threads = torch.get_num_threads()
    expected, refined = ops.dense_crf(prob, image), ops.dense_crf_labels(given, image, labels)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.dense_crf(prob, image), expected)
            assert torch.equal(ops.dense_crf_labels(given, image, labels), refined)
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.dense_crf(prob, image), expected)


@pytest.mark.usefixtures("several_threads")
def test_callers_in_several_threads():
    """More sizes than lattices are kept, in turn and at once."""
    cases = [case((20 + i, 30), dtype=torch.float32) for i in range(7)]
    expected = [ops.dense_crf(*c) for c in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(lambda c: ops.dense_crf(*c), cases * 5), expected * 5, strict=True):
            assert torch.equal(got, wanted)


def test_cache_is_bounded():
    assert 0 < twin._gaussian_lattice.cache_info().maxsize <= 8


def test_nan_spreads_where_values_are_not_checked():
    prob, image = case((4, 5))
    image = image.double() / 255
    for row in (torch.ops.camguide_fast.dense_crf, reference.dense_crf):
        for wrong in (torch.nan, torch.inf):
            image[0, 0, 1, 1] = wrong
            assert row(prob, image, 1, *flat(GAUSSIAN, BILATERAL), None)[0, :, 1, 1].isnan().all()
        spoilt = prob.clone()
        spoilt[0, 1, 2, 3] = torch.nan
        assert row(spoilt, image.nan_to_num(0, 0), 1, *flat(GAUSSIAN, BILATERAL), None)[0, :, 2, 3].isnan().all()


def test_opcheck_and_compile():
    prob, image = case((5, 6), dtype=torch.float32)
    settings = (5, *flat(GAUSSIAN, BILATERAL))
    torch.library.opcheck(torch.ops.camguide_fast.dense_crf.default, (prob, image, *settings, None))
    torch.library.opcheck(torch.ops.camguide_fast.dense_crf.default, (None, image, *settings, -torch.log(prob)))
    labels = prob.argmax(1)
    torch.library.opcheck(torch.ops.camguide_fast.dense_crf_labels.default, (labels, image, 3, 0.7, *settings))

    def both(prob, labels, image):
        return ops.dense_crf(prob, image) * 2, ops.dense_crf_labels(labels, image, 3) + 1

    compiled = torch.compile(both, fullgraph=True)
    for got, expected in zip(compiled(prob, labels, image), both(prob, labels, image), strict=True):
        torch.testing.assert_close(got, expected)


def test_labels_of_few_kinds():
    _, image = case((8, 9), batch=3)
    labels = torch.full((3, 8, 9), 255)
    labels[0, 2, 3] = 4  # one label and unknown pixels: that label everywhere
    labels[1, :, :5], labels[1, :, 5:] = 0, 1
    out = ops.dense_crf_labels(labels, image, 5)
    assert (out[0] == 4).all() and (out[2] == 255).all()
    assert set(out[1].unique().tolist()) <= {0, 1}
    torch.testing.assert_close(ops.dense_crf_labels(labels, image, 5, iterations=0)[1], labels[1])
    outside = torch.where(labels == 4, 9, labels)  # where values are not looked at, a label out of range counts as 255
    assert (reference.dense_crf_labels(outside, image, 5, 0.7, 1, *flat(GAUSSIAN, BILATERAL))[0] == outside[0]).all()


def test_many_labels():
    labels = torch.arange(255).repeat(2).view(1, 17, 30)
    out = ops.dense_crf_labels(labels.to(torch.uint8), torch.zeros(1, 3, 17, 30, dtype=torch.uint8), 255)
    assert out.max() <= 254


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prob=None), "exactly one of prob and unary must be given, got neither"),
        (dict(unary=torch.ones(1, 2, 4, 4)), "exactly one of prob and unary must be given, got both"),
        (dict(prob=torch.full((1, 2, 4, 4), torch.nan)), "prob holds NaN"),
        (dict(prob=torch.full((1, 2, 4, 4), -0.5)), "prob must be >= 0, got a minimum of -0.5"),
        (dict(prob=None, unary=torch.full((1, 2, 4, 4), torch.inf)), "unary holds NaN or infinite"),
        (dict(prob=torch.ones(0, 2, 4, 4)), r"prob must have 4 non-empty dimensions, got shape \(0, 2, 4, 4\)"),
        (dict(prob=torch.ones(1, 2, 4, 4, dtype=torch.int64)), "prob must be one of"),
        (dict(prob=torch.ones(1, 2, 4, 4, requires_grad=True)), "prob requires grad"),
        (dict(image=torch.zeros(1, 3, 4, 5)), r"image must have shape \(1, 3, 4, 4\)"),
        (dict(image=torch.zeros(1, 1, 4, 4)), "image must be RGB"),
        (dict(image=torch.full((1, 3, 4, 4), torch.nan)), "image holds NaN"),
        (dict(iterations=-1), "iterations must be an integer >= 0"),
        (dict(gaussian=(0.0, 3.0)), "sxy of gaussian must be a number > 0"),
        (dict(gaussian=(float("nan"), 3.0)), "sxy of gaussian must be a number > 0, got nan"),
        (dict(gaussian=(3.0, -1.0)), "weight of gaussian must be a number >= 0, got -1.0"),
        (dict(prob=torch.ones(1, 0, 4, 4)), "prob must have 4 non-empty dimensions"),
        (dict(prob=None, unary=torch.ones(1, 2, 4, 5)), r"image must have shape \(1, 3, 4, 5\) to match unary"),
        (dict(image=torch.zeros(0, 3, 4, 4)), "image must have 4 non-empty dimensions"),
        (dict(gaussian=(3.0, 3.0, 3.0)), r"gaussian must be \(sxy, weight\)"),
        (dict(bilateral=(50.0, -5.0, 10.0)), "srgb of bilateral must be a number > 0"),
        (dict(bilateral=(50.0, 5.0, torch.inf)), "weight of bilateral must be finite"),
        (dict(bilateral=5.0), r"bilateral must be \(sxy, srgb, weight\)"),
        (dict(bilateral=[(50.0, 5.0, 10.0), (50.0, 5.0)]), r"bilateral must be .* got \(50.0, 5.0\)"),
        (dict(bilateral=(50.0, (5.0, 5.0), 10.0)), "srgb of bilateral must be a number or 3 numbers"),
        (dict(gaussian=((3.0, 0.0), 3.0)), "sxy of gaussian must be a number > 0"),
        (dict(gaussian=((3.0, torch.inf), 3.0)), "sxy of gaussian must be finite"),
        (dict(gaussian=((3.0, 3.0, 3.0), 3.0)), "sxy of gaussian must be a number or 2 numbers"),
        (dict(image=torch.rand(1, 3, 4, 4), bilateral=(50.0, 1e-6, 10.0)), "a sigma is too small"),
        (dict(image=torch.rand(1, 3, 4, 4), bilateral=(50.0, 5e-3, 10.0)), "a sigma is too small"),
    ],
)
def test_errors(change, message):
    arguments = dict(prob=torch.ones(1, 2, 4, 4), image=torch.zeros(1, 3, 4, 4)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.dense_crf(**arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=torch.zeros(1, 4, 4)), "labels must be one of"),
        (dict(labels=torch.zeros(4, 4, dtype=torch.int64)), "labels must have 3"),
        (dict(labels=torch.zeros(0, 4, 4, dtype=torch.int64)), "labels must have 3 non-empty dimensions"),
        (dict(image=torch.full((1, 3, 4, 4), torch.nan)), "image holds NaN"),
        (dict(gt_prob=float("nan")), "gt_prob must be a number > 0"),
        (dict(labels=torch.full((1, 4, 4), 3)), "labels must be in 0 .. 2 or 255, got 3"),
        (dict(labels=torch.full((1, 4, 4), -1)), "labels must be in 0 .. 2 or 255, got -1"),
        (dict(num_labels=0), "num_labels must be an integer >= 1"),
        (dict(num_labels=256), "num_labels must be at most 255"),
        (dict(gt_prob=1.0), "gt_prob must be < 1"),
        (dict(gt_prob=0), "gt_prob must be a number > 0"),
        (dict(image=torch.zeros(2, 3, 4, 4)), "image must have shape"),
        (dict(gaussian=(-1.0, 1.0)), "sxy of gaussian"),
    ],
)
def test_errors_of_labels(change, message):
    arguments = (
        dict(labels=torch.zeros(1, 4, 4, dtype=torch.int64), image=torch.zeros(1, 3, 4, 4), num_labels=3) | change
    )
    with pytest.raises((ValueError, TypeError), match=message):
        ops.dense_crf_labels(**arguments)
