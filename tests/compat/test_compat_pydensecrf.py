"""compat.pydensecrf: a script written for pydensecrf runs after a change of its imports, with the same numbers."""

import math

import cv2
import numpy as np
import pytest

from camguide_fast.compat.pydensecrf import densecrf, utils

SCRIPT = """
import numpy as np
import {package}.densecrf as dcrf
from {package}.utils import (compute_unary, create_pairwise_bilateral, create_pairwise_gaussian, softmax_to_unary,
                             unary_from_labels, unary_from_softmax)

def from_labels(image, labels, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    U = unary_from_labels(labels, n, gt_prob=0.7, zero_unsure=True)
    d.setUnaryEnergy(U)
    d.addPairwiseGaussian(sxy=(3, 3), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
    d.addPairwiseBilateral(sxy=(80, 60), srgb=(13, 11, 17), rgbim=image, compat=10, kernel=dcrf.DIAG_KERNEL,
                           normalization=dcrf.NORMALIZE_SYMMETRIC)
    return np.array(d.inference(5))

def from_softmax(image, probs, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs, scale=0.9)))
    d.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    d.addPairwiseGaussian(1, 2)
    d.addPairwiseGaussian((5, 2), np.float32(1.5))
    d.addPairwiseBilateral(20, 20, image, 2)
    return np.array(d.inference(10))

def only_gaussian(image, probs, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs, clip=1e-3)))
    d.addPairwiseGaussian(sxy=2.5, compat=4)
    return np.array(d.inference(3))

def no_terms(image, probs, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs)))
    return np.array(d.inference(2))

def step_by_step(image, probs, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs)))
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    Q, tmp1, tmp2 = d.startInference()
    divergence.append(d.klDivergence(Q))
    for i in range(4):
        d.stepInference(Q, tmp1, tmp2)
        divergence.append(d.klDivergence(Q))
    return np.array(Q)

def from_features(image, probs, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(np.ascontiguousarray(softmax_to_unary(probs, GT_PROB=0.8)))
    d.addPairwiseEnergy(create_pairwise_gaussian(sdims=(3, 4), shape=image.shape[:2]), compat=3)
    near = create_pairwise_bilateral(sdims=(50, 30), schan=(5, 6, 7), img=image, chdim=2)
    far = create_pairwise_bilateral(sdims=(90, 90), schan=13, img=image, chdim=2)
    d.addPairwiseEnergy(near, compat=10, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
    d.addPairwiseEnergy(far, compat=2)
    return np.array(d.inference(5))

def points(image, probs, n):
    d = dcrf.DenseCRF(image.shape[0] * image.shape[1], n)
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs)))
    d.addPairwiseEnergy(create_pairwise_bilateral(sdims=(50, 30), schan=9, img=image, chdim=2), compat=10)
    d.addPairwiseEnergy(create_pairwise_gaussian(sdims=(3, 4), shape=image.shape[:2]), compat=3)
    Q, tmp1, tmp2 = d.startInference()
    for i in range(3):
        d.stepInference(Q, tmp1, tmp2)
    divergence.append(d.klDivergence(Q))
    return np.array(Q)

def points_alone(image, probs, n):
    d = dcrf.DenseCRF(image.shape[0] * image.shape[1], n)
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs)))
    return np.array(d.inference(2))

def forbidden_label(image, probs, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    probs = probs.copy()
    probs[0, :50] = 0
    d.setUnaryEnergy(np.ascontiguousarray(softmax_to_unary(probs)))
    d.addPairwiseGaussian(sxy=3, compat=3)
    return np.array(d.inference(5))

def as_before(image, labels, n):
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], n)
    d.setUnaryEnergy(np.ascontiguousarray(compute_unary(labels, n, GT_PROB=0.6)))
    d.addPairwiseGaussian(sxy=3, compat=3)
    return np.array(d.inference(5))

divergence = []
"""
LABELS = ("from_labels", "as_before")
PROBS = (
    "from_softmax",
    "only_gaussian",
    "no_terms",
    "step_by_step",
    "from_features",
    "points",
    "points_alone",
    "forbidden_label",
)


def script(package: str) -> dict:
    names = {}
    exec(SCRIPT.format(package=package), names)
    return names


@pytest.mark.parametrize("n", [2, 3, 9])
@pytest.mark.parametrize("function", [*LABELS, *PROBS])
def test_same_script_same_numbers(images, function, n):
    pytest.importorskip("pydensecrf.densecrf")
    image = np.ascontiguousarray(cv2.imread(str(images / "im1.png"))[:150, 40:229, ::-1])
    rng = np.random.default_rng(0)
    scores = cv2.resize(rng.normal(size=(7, 9, n)), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    probs = np.exp(2 * scores.transpose(2, 0, 1))
    probs = (probs / probs.sum(0)).astype(np.float32)
    given = np.where(rng.random(image.shape[:2]) < 0.2, probs.argmax(0) + 1, 0) if function in LABELS else probs
    scripts = script("camguide_fast.compat.pydensecrf"), script("pydensecrf")
    ours, theirs = (names[function](image, given, n) for names in scripts)
    np.testing.assert_allclose(*(names["divergence"] for names in scripts), rtol=1e-4)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= 1e-3
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.999


@pytest.mark.parametrize("zero_unsure", [True, False])
def test_unaries_equal(zero_unsure):
    theirs = pytest.importorskip("pydensecrf.utils")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (5, 6))
    np.testing.assert_array_equal(
        utils.unary_from_labels(labels, 4, 0.6, zero_unsure), theirs.unary_from_labels(labels, 4, 0.6, zero_unsure)
    )
    probs = rng.dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1)
    probs[0, 0, 0] = 0
    for settings in (dict(), dict(scale=0.5), dict(scale=0.8, clip=None)):
        np.testing.assert_allclose(
            utils.unary_from_softmax(probs, **settings), theirs.unary_from_softmax(probs, **settings), rtol=1e-6
        )


def test_features_equal():
    theirs = pytest.importorskip("pydensecrf.utils")
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for make in (
        lambda u: u.create_pairwise_gaussian((2, 3), (5, 7)),
        lambda u: u.create_pairwise_gaussian((2, 3, 0.5), (5, 7, 2)),
        lambda u: u.create_pairwise_bilateral((2, 3), (4, 5, 6), image, 2),
        lambda u: u.create_pairwise_bilateral((2, 3), 4.0, image[..., 0]),
        lambda u: u.create_pairwise_bilateral((2, 3), 9, image.transpose(2, 0, 1), 0),
    ):
        np.testing.assert_array_equal(make(utils), make(theirs))
        assert make(utils).dtype == make(theirs).dtype


def test_steps_from_any_q():
    """A script may change Q between two steps."""
    peer = pytest.importorskip("pydensecrf.densecrf").DenseCRF2D(7, 5, 3)
    ours = densecrf.DenseCRF2D(7, 5, 3)
    energy = np.random.default_rng(0).random((3, 35), dtype=np.float32)
    for crf in (ours, peer):
        crf.setUnaryEnergy(energy)
        crf.addPairwiseGaussian(2, 4)
    given = np.random.default_rng(1).dirichlet(np.ones(3), 35).T.astype(np.float32)
    given[:, ::3] = np.array([1, 0, 0])[:, None]  # also without any mass for a label
    q, *rest = peer.startInference()
    np.asarray(q)[:] = given
    peer.stepInference(q, *rest)
    mine = given.copy()
    ours.stepInference(mine, None, None)
    np.testing.assert_allclose(mine, np.array(q), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1), (3, 4)], ids=str)
def test_sides_of_points(shape):
    """Points are pixels of an image, whose sides the features tell."""
    energy = np.random.default_rng(0).random((2, math.prod(shape)), dtype=np.float32)
    fields = densecrf.DenseCRF(math.prod(shape), 2), densecrf.DenseCRF2D(shape[1], shape[0], 2)
    for crf in fields:
        crf.setUnaryEnergy(energy)
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 3), shape), 3)
    np.testing.assert_array_equal(*(crf.inference(3) for crf in fields))


def test_constants_equal():
    theirs = pytest.importorskip("pydensecrf.densecrf")
    for name in dir(densecrf):
        if name.isupper() and not name.startswith("_"):
            assert int(getattr(theirs, name)) == getattr(densecrf, name), name


def test_what_is_not_covered_says_so():
    crf = densecrf.DenseCRF2D(4, 3, 2)
    with pytest.raises(ValueError, match="set the unary energy before"):
        crf.inference(1)
    with pytest.raises(ValueError, match=r"shape \(2, 12\) \[nlabels, pixels\], got \(2, 11\)"):
        crf.setUnaryEnergy(np.zeros((2, 11), np.float32))
    with pytest.raises(NotImplementedError, match="NORMALIZE_SYMMETRIC"):
        crf.addPairwiseGaussian(3, 3, normalization=densecrf.NO_NORMALIZATION)
    with pytest.raises(NotImplementedError, match="one weight"):
        crf.addPairwiseGaussian(3, np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"rgbim must be uint8 of shape \(3, 4, 3\)"):
        crf.addPairwiseBilateral(3, 3, np.zeros((4, 3, 3), np.uint8), 3)
    crf.addPairwiseBilateral(3, 3, np.zeros((3, 4, 3), np.uint8), 3)
    with pytest.raises(NotImplementedError, match="same rgbim"):
        crf.addPairwiseBilateral(3, 3, np.ones((3, 4, 3), np.uint8), 3)
    with pytest.raises(NotImplementedError, match="cannot be mixed with addPairwiseGaussian"):
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 2), (3, 4)), 3)
    with pytest.raises(ValueError, match="gt_prob"):
        utils.unary_from_labels(np.zeros(3), 2, 1.0)
    with pytest.raises(ValueError, match="scale"):
        utils.unary_from_softmax(np.ones((2, 3)) / 2, scale=2)
    with pytest.raises(ValueError, match="expected 2 sigmas, .*, got 3"):
        utils.create_pairwise_gaussian((1, 2, 3), (4, 5))


def test_features_that_are_not_covered_say_so():
    scattered = densecrf.DenseCRF(7, 2)
    for positions in (np.random.default_rng(0).random((2, 7)), utils.create_pairwise_gaussian((2, 2), (2, 4))[:, :7]):
        with pytest.raises(NotImplementedError, match="got other positions"):
            scattered.addPairwiseEnergy(positions, 3)
    crf = densecrf.DenseCRF2D(4, 3, 2)
    image = np.zeros((3, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"shape \[d, 12\] \[d, pixels\], got \(2, 20\)"):
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 2), (4, 5)), 3)
    with pytest.raises(NotImplementedError, match="three channels; got 3 features a pixel"):
        crf.addPairwiseEnergy(utils.create_pairwise_bilateral((2, 2), 5, image[..., 0]), 3)
    with pytest.raises(NotImplementedError, match="got other positions"):
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 2), (3, 4))[::-1], 3)
    crf.addPairwiseEnergy(utils.create_pairwise_bilateral((2, 2), 5, image, 2), 3)
    with pytest.raises(NotImplementedError, match="same image"):
        crf.addPairwiseEnergy(utils.create_pairwise_bilateral((2, 2), 5, image + np.eye(3, 4)[..., None], 2), 3)
