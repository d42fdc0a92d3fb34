"""superpixel_random_walk, graph included: the peer is NumPy and SciPy's sparse matrices."""

import numpy as np
import torch
from _check import close
from _harness import Row
from _inputs import class_maps, photographs

from camguide_fast import ops, reference

SIGMA, ITERATIONS = 2.0, 12


def numpy_scipy(target, segments, picture):
    from scipy.sparse import coo_matrix
    from skimage.color import rgb2lab

    flat = segments.ravel()
    n = flat.max() + 1
    counts = np.maximum(np.bincount(flat, minlength=n), 1)

    def means(planes):  # [C, HW] -> [N, C]
        return np.stack([np.bincount(flat, plane, n) for plane in planes], 1) / counts[:, None]

    colour = means(rgb2lab(picture).reshape(-1, 3).T)
    a = np.concatenate([segments[:, :-1].ravel(), segments[:-1].ravel()])
    b = np.concatenate([segments[:, 1:].ravel(), segments[1:].ravel()])
    pairs = np.unique((np.minimum(a, b) * n + np.maximum(a, b))[a != b])
    i, j = pairs // n, pairs % n
    weight = np.exp(-np.linalg.norm(colour[i] - colour[j], axis=1) / (2 * SIGMA**2))
    w = coo_matrix((np.r_[weight, weight], (np.r_[i, j], np.r_[j, i])), (n, n)).tocsr()
    w = w.multiply(1 / w.sum(1)).tocsr()
    u = means(target.reshape(len(target), -1))
    for _ in range(ITERATIONS):
        u = w @ u
    return np.ascontiguousarray(u.T, np.float32)[:, segments]


def eager(target, segments, image, n):
    graph = reference.superpixel_graph(segments, image, SIGMA, False, n, True)
    return reference.superpixel_random_walk(target, segments, *graph, ITERATIONS)


def bench_superpixel_walk(bench):
    image, target = photographs(1, 512), class_maps(1, 20, 512, 512).sigmoid()
    segments = ops.slic(image)
    n = ops.max_segments(512, 512)
    picture = np.ascontiguousarray(image[0].permute(1, 2, 0))
    bench.compare(
        ("superpixel_random_walk", "superpixel_graph"),
        "1x20x512x512, 1100 superpixels",
        inputs=(target, segments, image),
        oracle=lambda target, segments, image: eager(target, segments, image.double() / 255, n),
        check=close(1e-5),
        rows={
            "ours": lambda target, segments, image: ops.superpixel_random_walk(
                target, segments, image, SIGMA, ITERATIONS, num_segments=n
            ),
            "eager": lambda target, segments, image: eager(target, segments, image, n),
            "NumPy/SciPy": Row(
                numpy_scipy,
                inputs=(target[0].numpy(), segments[0].long().numpy(), picture),
                result=lambda out: torch.from_numpy(out)[None],
                on_cpu=True,
                needs="skimage.color",
            ),
        },
    )
