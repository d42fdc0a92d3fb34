"""slic: the peers are scikit-image, OpenCV's ximgproc and fast-slic. The last two compute other superpixels."""

import cv2
import numpy as np
import torch
from _check import Check, equal
from _harness import compare
from _inputs import photographs
from _rows import Row

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


def one_by_one(f, check: Check, **settings) -> Row:
    """A peer, which knows no batches."""
    return Row(
        lambda *pictures: [f(picture) for picture in pictures],
        inputs=lambda image: tuple(np.ascontiguousarray(one.permute(1, 2, 0)) for one in image),
        result=lambda labels: torch.from_numpy(np.stack(labels).astype(np.int64)),
        check=check,
        on_cpu=True,
        **settings,
    )


def peers(n_segments):
    """With connectivity, which everyone does in another way."""
    return {
        "scikit-image": one_by_one(
            scikit_image(n_segments, True),
            as_many_segments,
            needs="skimage.segmentation",
            note="its own rule of connectivity",
        ),
        "OpenCV ximgproc": one_by_one(
            opencv(n_segments),
            as_many_segments,
            needs="cv2.ximgproc.createSuperpixelSLIC",
            note="8-bit Lab, perturbed seeds, its own rule of connectivity",
        ),
        "fast-slic": one_by_one(
            fast_slic(n_segments),
            as_many_segments,
            needs="fast_slic.avx2",
            note="approximate: 8-bit Lab, L1 distance, rows subsampled",
        ),
    }


def of(case, n_segments, image, peers, min_size_factor=0.5):
    settings = (n_segments, COMPACTNESS, ITERATIONS, min_size_factor)
    return compare(
        "slic",
        f"{case}, {n_segments} segments",
        inputs=lambda: (image(),),
        oracle=lambda image: reference.slic(image, *settings)[0],
        check=equal(),
        rows={"ours": lambda image: ops.slic(image, *settings), **peers},
    )


def one_image():
    return photographs(1, 512)


bench_slic_labels = of(  # the clustering alone: labels of scikit-image without connectivity
    "512x512, labels before connectivity",
    1100,
    one_image,
    {"scikit-image": one_by_one(scikit_image(1100, False), equal(0.99), needs="skimage.segmentation")},
    min_size_factor=0.0,
)
bench_slic = of("512x512, connected", 1100, one_image, peers(1100))
bench_slic_batch = of("batch of 32, 512x512, connected", 1100, lambda: photographs(32, 512), peers(1100))
bench_slic_large = of(  # a camera's photograph
    "1500x2500, connected", 5000, lambda: photographs(1, 2500)[..., :1500, :].contiguous(), peers(5000)
)
