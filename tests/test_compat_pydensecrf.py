"""compat.pydensecrf: a script written for pydensecrf runs after a change of its imports, with the same numbers."""

import cv2
import numpy as np
import pytest

from camguide_fast.compat.pydensecrf import densecrf, utils

SCRIPT = """
import numpy as np
import {package}.densecrf as dcrf
from {package}.utils import unary_from_labels, unary_from_softmax

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
"""


def script(package: str) -> dict:
    names = {}
    exec(SCRIPT.format(package=package), names)
    return names


@pytest.mark.parametrize("n", [2, 3, 9])
@pytest.mark.parametrize("function", ["from_labels", "from_softmax", "only_gaussian", "no_terms"])
def test_same_script_same_numbers(images, function, n):
    pytest.importorskip("pydensecrf.densecrf")
    image = np.ascontiguousarray(cv2.imread(str(images / "im1.png"))[:150, 40:229, ::-1])
    rng = np.random.default_rng(0)
    scores = cv2.resize(rng.normal(size=(7, 9, n)), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    probs = np.exp(2 * scores.transpose(2, 0, 1))
    probs = (probs / probs.sum(0)).astype(np.float32)
    given = np.where(rng.random(image.shape[:2]) < 0.2, probs.argmax(0) + 1, 0) if function == "from_labels" else probs
    ours = script("camguide_fast.compat.pydensecrf")[function](image, given, n)
    theirs = script("pydensecrf")[function](image, given, n)
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


def test_constants_equal():
    theirs = pytest.importorskip("pydensecrf.densecrf")
    for name in dir(densecrf):
        if name.isupper():
            assert int(getattr(theirs, name)) == getattr(densecrf, name), name


def test_what_is_not_covered_says_so():
    crf = densecrf.DenseCRF2D(4, 3, 2)
    with pytest.raises(ValueError, match="set the unary energy before"):
        crf.inference(1)
    with pytest.raises(ValueError, match=r"shape \(2, 12\) \[nlabels, h \* w\], got \(2, 11\)"):
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
    with pytest.raises(ValueError, match="gt_prob"):
        utils.unary_from_labels(np.zeros(3), 2, 1.0)
    with pytest.raises(ValueError, match="scale"):
        utils.unary_from_softmax(np.ones((2, 3)) / 2, scale=2)
