"""slic: the peers are scikit-image, OpenCV's ximgproc and fast-slic. The last two compute other superpixels."""

import cv2
import numpy as np
import torch
from _check import Check, equal
from _harness import Row
from _inputs import photographs
from torch import Tensor

from camguide_fast import ops, reference

COMPACTNESS, ITERATIONS = 10.0, 10


def scikit_image(n_segments, connected):
    def slic(picture):
        from skimage.segmentation import slic

        settings = dict(start_label=0, enforce_connectivity=connected, channel_axis=-1)
        return slic(picture, n_segments, COMPACTNESS, ITERATIONS, **settings)

    return slic


def opencv(n_segments):
    def slic(picture):
        lab = cv2.cvtColor(picture, cv2.COLOR_RGB2Lab)
        step = round((picture.shape[0] * picture.shape[1] / n_segments) ** 0.5)
        slic = cv2.ximgproc.createSuperpixelSLIC(lab, cv2.ximgproc.SLIC, step, COMPACTNESS)
        slic.iterate(ITERATIONS)
        slic.enforceLabelConnectivity(50)
        return slic.getLabels()

    return slic


def fast_slic(n_segments):
    def slic(picture):
        from fast_slic.avx2 import SlicAvx2

        slic = SlicAvx2(num_components=n_segments, compactness=COMPACTNESS, num_threads=torch.get_num_threads())
        return slic.iterate(picture, ITERATIONS)

    return slic


def as_many_segments(result, expected):
    """For other superpixels: about as many of them, in each image."""
    found, wanted = (sum(len(labels.unique()) for labels in batch) for batch in (result, expected))
    return 0.7 * wanted <= found <= 1.4 * wanted, f"{found} segments, ours {wanted}"


def one_by_one(f, image: Tensor, check: Check, **settings) -> Row:
    """A peer, which knows no batches."""
    return Row(
        lambda *pictures: [f(picture) for picture in pictures],
        inputs=tuple(np.ascontiguousarray(one.permute(1, 2, 0)) for one in image),
        result=lambda labels: torch.from_numpy(np.stack(labels).astype(np.int64)),
        check=check,
        on_cpu=True,
        **settings,
    )


def peers(image, n_segments):
    """With connectivity, which everyone does in another way."""
    return {
        "scikit-image": one_by_one(
            scikit_image(n_segments, True),
            image,
            as_many_segments,
            needs="skimage.segmentation",
            note="its own rule of connectivity",
        ),
        "OpenCV ximgproc": one_by_one(
            opencv(n_segments),
            image,
            as_many_segments,
            needs="cv2.ximgproc.createSuperpixelSLIC",
            note="8-bit Lab, perturbed seeds, its own rule of connectivity",
        ),
        "fast-slic": one_by_one(
            fast_slic(n_segments),
            image,
            as_many_segments,
            needs="fast_slic.avx2",
            note="approximate: 8-bit Lab, L1 distance, rows subsampled",
        ),
    }


def compare(bench, case, image, n_segments, min_size_factor, peers):
    settings = (n_segments, COMPACTNESS, ITERATIONS, min_size_factor)
    bench.compare(
        "slic",
        f"{case}, {n_segments} segments",
        inputs=(image,),
        oracle=lambda image: reference.slic(image, *settings)[0],
        check=equal(),
        rows={"ours": lambda image: ops.slic(image, *settings), **peers},
    )


def bench_slic_labels(bench):
    """The clustering alone: labels of scikit-image without connectivity."""
    image = photographs(1, 512)
    scikit = one_by_one(scikit_image(1100, False), image, equal(0.99), needs="skimage.segmentation")
    compare(bench, "512x512, labels before connectivity", image, 1100, 0.0, {"scikit-image": scikit})


def bench_slic(bench):
    image = photographs(1, 512)
    compare(bench, "512x512, connected", image, 1100, 0.5, peers(image, 1100))


def bench_slic_batch(bench):
    image = photographs(32, 512)
    compare(bench, "batch of 32, 512x512, connected", image, 1100, 0.5, peers(image, 1100))


def bench_slic_large(bench):
    """A camera's photograph."""
    image = photographs(1, 2500)[..., :1500, :].contiguous()
    compare(bench, "1500x2500, connected", image, 5000, 0.5, peers(image, 5000))
