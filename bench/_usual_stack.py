"""What people use where they have no ops of ours: scikit-image, pydensecrf, NumPy and SciPy, plain PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from bench_superpixel_walk import numpy_graph, numpy_walk
from torch import Tensor

from camguide_fast import layers, ops, reference

MODULES = ("skimage.segmentation", "pydensecrf.utils", "scipy.sparse")


def picture(image: Tensor) -> np.ndarray:  # uint8 [3, H, W] -> [H, W, 3]
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def slic(image, n_segments=1100):
    from skimage.segmentation import slic as skimage_slic

    options = dict(n_segments=n_segments, compactness=10, max_num_iter=10, start_label=0)
    return torch.from_numpy(np.stack([skimage_slic(picture(one), **options) for one in image]))


def superpixel_random_walk(labels, segments, image, num_labels, ignore=255, **_):
    """One-hot maps, as the method's description has it."""
    known = labels != ignore
    one_hot = torch.nn.functional.one_hot(labels.masked_fill(~known, 0).long(), num_labels).movedim(-1, 1).float()
    one_hot = one_hot * known[:, None]
    walked = [
        numpy_walk(maps.numpy(), s.numpy(), numpy_graph(s.numpy(), picture(i)))
        for maps, s, i in zip(one_hot, segments, image, strict=True)
    ]
    return torch.from_numpy(np.stack(walked)).argmax(1).to(labels.dtype).masked_fill(~known, ignore)


def dense_crf_labels(labels, image, num_labels, gt_prob, iterations, gaussian, bilateral):
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_labels

    results = []
    for label, one in zip(labels.numpy(), image, strict=True):
        present, index = np.unique(label, return_inverse=True)
        if len(present) == 1:
            results.append(label)
            continue
        crf = densecrf.DenseCRF2D(label.shape[1], label.shape[0], len(present))
        crf.setUnaryEnergy(unary_from_labels(index, len(present), gt_prob=gt_prob, zero_unsure=False))
        crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
        crf.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=picture(one), compat=bilateral[2])
        results.append(present[np.argmax(crf.inference(iterations), 0)].reshape(label.shape))
    return torch.from_numpy(np.stack(results))


def cam_normalize(features, eps=1e-5):
    return reference.cam_normalize(features, eps)[0]


def edge_consistency_loss(cam, support, label, tau=0.1, delta=0.05, gamma=2.0, hard=0.35, factor=2.0, valid=None):
    return reference.edge_consistency_loss(cam, support, label, tau, delta, gamma, hard, factor, valid)


OPS = {
    "slic": slic,
    "superpixel_random_walk": superpixel_random_walk,
    "dense_crf_labels": dense_crf_labels,
    "cam_normalize": cam_normalize,
    "edge_support": reference.edge_support,
    "edge_consistency_loss": edge_consistency_loss,
    "local_consistency_loss": reference.local_consistency_loss,
    "target_nll": reference.target_nll,
    "threshold_labels": reference.threshold_labels,
}


@contextmanager
def usual_stack() -> Iterator[None]:
    """Inside, the method runs on these instead of on our ops."""
    with mock.patch.multiple(ops, **OPS), mock.patch.object(layers, "guided_filter", reference.guided_filter):
        yield
