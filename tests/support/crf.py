"""Cases of the dense CRF, and its rows: the op, the twin, and pydensecrf."""

import importlib

import numpy as np
import pytest
import torch

from camguide_fast import ops, reference

twin = importlib.import_module("camguide_fast.reference.dense_crf")  # the package gives its name to the function

GAUSSIAN, BILATERAL = (3.0, 3.0), (50.0, 5.0, 10.0)


def case(shape, labels=3, dtype=torch.float64, batch=1):
    """Random blobs: smooth probabilities and a smooth image with a little noise."""

    def smooth(channels):
        coarse = torch.rand(batch, channels, 5, 5, dtype=dtype)
        return torch.nn.functional.interpolate(coarse, shape, mode="bilinear", align_corners=True)

    image = (smooth(3) * 200 + 40 * torch.rand(batch, 3, *shape, dtype=dtype)).to(torch.uint8)
    return torch.softmax(6 * smooth(labels), 1), image


def flat(gaussian, bilateral):
    """Terms as the op and the twin take them."""
    (near, near_weight), (far, colour, weight) = gaussian, bilateral
    return [near, near, near_weight], [far, far, colour, colour, colour, weight]


def crf(row, prob, image, iterations=5, gaussian=GAUSSIAN, bilateral=BILATERAL, unary=None):
    """The op, which the C++ kernel serves where it is built, or the twin."""
    if row == "op":
        return ops.dense_crf(prob, image, iterations, gaussian, bilateral, unary)
    return reference.dense_crf(prob, image, iterations, *flat(gaussian, bilateral), unary)


def pydensecrf(unary, image, iterations=5, gaussian=GAUSSIAN, bilateral=BILATERAL):
    """[L, H, W], uint8 [3, H, W] -> Q [L, H, W]."""
    dcrf = pytest.importorskip("pydensecrf.densecrf")
    n, h, w = unary.shape
    crf = dcrf.DenseCRF2D(w, h, n)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(n, -1).float().numpy()))
    crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    crf.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=rgb, compat=bilateral[2])
    return torch.from_numpy(np.array(crf.inference(iterations))).view(n, h, w)
