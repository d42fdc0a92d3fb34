"""slic: the peers are scikit-image, OpenCV's ximgproc and fast-slic. The last two compute other superpixels."""

import cv2
import numpy as np
import torch
from _check import equal
from _harness import Row
from _inputs import photographs

from camguide_fast import ops, reference

SEGMENTS, COMPACTNESS, ITERATIONS = 1100, 10.0, 10


def skimage_slic(picture, connected):
    from skimage.segmentation import slic

    return slic(
        picture, SEGMENTS, COMPACTNESS, ITERATIONS, start_label=0, enforce_connectivity=connected, channel_axis=-1
    )


def opencv(picture):
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2Lab)
    step = round((picture.shape[0] * picture.shape[1] / SEGMENTS) ** 0.5)
    slic = cv2.ximgproc.createSuperpixelSLIC(lab, cv2.ximgproc.SLIC, step, COMPACTNESS)
    slic.iterate(ITERATIONS)
    slic.enforceLabelConnectivity(50)
    return slic.getLabels()


def fast_slic(picture):
    from fast_slic.avx2 import SlicAvx2

    slic = SlicAvx2(num_components=SEGMENTS, compactness=COMPACTNESS, num_threads=torch.get_num_threads())
    return slic.iterate(picture, ITERATIONS)


def as_many_segments(result, expected):
    """For other superpixels: about as many of them."""
    found, wanted = len(result.unique()), len(expected.unique())
    return 0.7 * wanted <= found <= 1.4 * wanted, f"{found} segments, ours {wanted}"


def one_image(labels):
    return torch.as_tensor(labels.astype(np.int64))[None]


def compare(bench, case, image, min_size_factor, peers):
    bench.compare(
        "slic",
        f"{case}, {SEGMENTS} segments",
        inputs=(image,),
        oracle=lambda image: reference.slic(image, SEGMENTS, COMPACTNESS, ITERATIONS, min_size_factor),
        check=equal(),
        rows={
            "ours": lambda image: ops.slic(image, SEGMENTS, COMPACTNESS, ITERATIONS, min_size_factor),
            **peers,
        },
    )


def bench_slic_labels(bench):
    """The clustering alone: labels of scikit-image without connectivity."""
    image = photographs(1, 512)
    picture = (np.ascontiguousarray(image[0].permute(1, 2, 0)),)
    scikit = Row(
        lambda picture: skimage_slic(picture, False),
        inputs=picture,
        result=one_image,
        check=equal(0.99),
        on_cpu=True,
        needs="skimage.segmentation",
    )
    compare(bench, "512x512, labels before connectivity", image, 0.0, {"scikit-image": scikit})


def bench_slic(bench):
    """With connectivity, which everyone does in another way."""
    image = photographs(1, 512)
    other = dict(
        inputs=(np.ascontiguousarray(image[0].permute(1, 2, 0)),),
        result=one_image,
        check=as_many_segments,
        on_cpu=True,
    )
    peers = {
        "scikit-image": Row(
            lambda picture: skimage_slic(picture, True),
            **other,
            needs="skimage.segmentation",
            note="its own rule of connectivity",
        ),
        "OpenCV ximgproc": Row(
            opencv,
            **other,
            needs="cv2.ximgproc.createSuperpixelSLIC",
            note="8-bit Lab, perturbed seeds, its own rule of connectivity",
        ),
        "fast-slic": Row(
            fast_slic, **other, needs="fast_slic.avx2", note="approximate: 8-bit Lab, L1 distance, rows subsampled"
        ),
    }
    compare(bench, "512x512, connected", image, 0.5, peers)


def bench_slic_batch(bench):
    compare(bench, "batch of 8, 512x512, connected", photographs(8, 512), 0.5, {})
