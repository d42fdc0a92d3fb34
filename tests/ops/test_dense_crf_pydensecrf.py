"""dense_crf, dense_crf_labels give what pydensecrf gives."""

import cv2
import numpy as np
import pytest
import torch
from support.crf import case, crf, pydensecrf, twin

from camguide_fast import ops

ROWS = pytest.mark.parametrize("row", ["op", "twin"])


def assert_like_pydensecrf(unary, image, row="op", **settings):
    ours = crf(row, None, image[None], unary=unary[None], **settings)[0]
    theirs = pydensecrf(unary, image, **settings)
    assert (ours - theirs).abs().max() <= 1e-3
    assert (ours.argmax(0) == theirs.argmax(0)).float().mean() >= 0.999


def read(path):
    return torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)


def scribbles(path, labels):
    """The energies of pydensecrf's own example: colours are labels, black is unknown."""
    colours, index = read(path).flatten(1).T.unique(dim=0, return_inverse=True)
    assert not colours[0].any()
    index = index.view(read(path).shape[1:])
    return twin._label_energy((index - 1) % labels, index > 0, labels, 0.7)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("row, labels", [("op", 3), ("op", 6), ("op", 21), ("twin", 3)])
def test_equals_pydensecrf_on_its_examples(images, number, row, labels):
    assert_like_pydensecrf(scribbles(images / f"anno{number}.png", labels), read(images / f"im{number}.png"), row)


@pytest.mark.parametrize("row, labels, count", [("op", 3, 20), ("op", 21, 4), ("twin", 3, 2)])
def test_equals_pydensecrf_on_photographs(voc, row, labels, count):
    names = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
    for name in names[:: len(names) // count][:count]:
        image = read(voc / f"JPEGImages/{name}.jpg")
        prob, _ = case(tuple(image.shape[1:]), labels, torch.float32)
        assert_like_pydensecrf(-torch.log(prob[0]), image, row)


@ROWS
def test_equals_pydensecrf_with_other_settings(images, row):
    unary, image = scribbles(images / "anno1.png", 3), read(images / "im1.png")
    assert_like_pydensecrf(unary, image, row, iterations=10, gaussian=(1.0, 3.0), bilateral=(67.0, 3.0, 4.0))
    assert_like_pydensecrf(unary, image, row, iterations=2, gaussian=(0.75, 3.0), bilateral=(20.0, 13.0, 10.0))


@ROWS
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3), (6, 6), (33, 17)], ids=str)
@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("brightest", [255, 40, 0])  # dark: pixels near black meet the vertices of pydensecrf's filling
def test_equals_pydensecrf_when_small(row, shape, labels, brightest):
    image = torch.randint(0, brightest + 1, (3, *shape), dtype=torch.uint8)
    assert_like_pydensecrf(-torch.log(torch.rand(labels, *shape).clamp(min=1e-5)), image, row)


@ROWS
def test_as_close_to_the_exact_filter_as_pydensecrf(row):
    """One step with two labels shows the filter: log Q0/Q1 + U0 - U1 is the filtered difference."""
    n, sxy, srgb = 48, 8.0, 30.0
    prob, image = case((n, n), labels=2)
    features = twin._bilateral_features(image[0], [sxy, sxy, srgb, srgb, srgb]).double()
    kernel = torch.exp(-(torch.cdist(features, features) ** 2) / 2)
    kernel = kernel / (kernel.sum(0) * kernel.sum(1)[:, None]).sqrt()
    exact = kernel @ (prob[0, 0] - prob[0, 1]).flatten()
    unary, settings = -torch.log(prob), (1, (3.0, 0.0), (sxy, srgb, 1.0))

    def error(q):
        return ((torch.log(q[0] / q[1]) + unary[0, 0] - unary[0, 1]).flatten() - exact).abs().mean()

    ours = error(crf(row, None, image, *settings, unary=unary)[0])
    assert ours <= 1.01 * error(pydensecrf(unary[0], image[0], *settings).double())
    assert ours <= 0.15 * exact.abs().mean()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_equal_pydensecrf(dtype):
    utils = pytest.importorskip("pydensecrf.utils")
    prob, image = case((40, 31), labels=3, batch=2)
    index = prob.argmax(1)
    index[0, :, 20:] = 255
    names = torch.tensor([2, 7, 20])  # of 21: the others do not take part
    labels = torch.where(index == 255, 255, names[index.clamp(max=2)]).to(dtype)
    out = ops.dense_crf_labels(labels, image, 21)
    assert out.dtype == dtype and out.shape == labels.shape
    for b in range(2):
        known = torch.where(index[b] == 255, 0, index[b])
        unary = utils.unary_from_labels(known.numpy(), 3, gt_prob=0.7, zero_unsure=False).reshape(3, 40, 31)
        unary[:, (index[b] == 255).numpy()] = np.log(3)
        theirs = names[pydensecrf(torch.from_numpy(unary), image[b]).argmax(0)]
        assert (out[b].long() == theirs).float().mean() >= 0.999


def test_equals_pydensecrf_with_many_labels():
    prob, image = case((6, 7), labels=255, dtype=torch.float32)
    assert_like_pydensecrf(-torch.log(prob[0]), image[0])
