"""superpixel_random_walk, with its graph and over one that is there: the peer is NumPy and SciPy's sparse matrices."""

from functools import cache

import numpy as np
import torch
from _check import close
from _harness import Row
from _inputs import class_maps, photographs

from camguide_fast import ops, reference

SIGMA, ITERATIONS = 2.0, 12


def means(planes, segments):  # [C, HW] -> [N, C]
    flat = segments.ravel()
    counts = np.maximum(np.bincount(flat), 1)
    return np.stack([np.bincount(flat, plane) for plane in planes], 1) / counts[:, None]


def numpy_graph(segments, picture):
    from scipy.sparse import coo_matrix
    from skimage.color import rgb2lab

    n = segments.max() + 1
    colour = means(rgb2lab(picture).reshape(-1, 3).T, segments)
    a = np.concatenate([segments[:, :-1].ravel(), segments[:-1].ravel()])
    b = np.concatenate([segments[:, 1:].ravel(), segments[1:].ravel()])
    pairs = np.unique((np.minimum(a, b) * n + np.maximum(a, b))[a != b])
    i, j = pairs // n, pairs % n
    weight = np.exp(-np.linalg.norm(colour[i] - colour[j], axis=1) / (2 * SIGMA**2))
    w = coo_matrix((np.r_[weight, weight], (np.r_[i, j], np.r_[j, i])), (n, n)).tocsr()
    return w.multiply(1 / w.sum(1)).tocsr()


def numpy_walk(target, segments, graph):
    u = means(target.reshape(len(target), -1), segments)
    for _ in range(ITERATIONS):
        u = graph @ u
    return np.ascontiguousarray(u.T, np.float32)[:, segments]


def numpy_scipy(target, segments, picture):
    return numpy_walk(target, segments, numpy_graph(segments, picture))


def peer(f, inputs):
    return Row(f, inputs=inputs, result=lambda out: torch.from_numpy(out)[None], on_cpu=True, needs="skimage.color")


def eager(target, segments, image, n):
    graph = reference.superpixel_graph(segments, image, SIGMA, False, n, True)
    return reference.superpixel_random_walk(target, segments, *graph, ITERATIONS)


def compare(bench, image, n_segments, peers):
    """Graph and walk of a batch [B, 3, H, W]."""
    batch, _, height, width = image.shape
    target, segments = class_maps(batch, 20, height, width).sigmoid(), ops.slic(image, n_segments)
    n = ops.max_segments(height, width, n_segments)
    bench.compare(
        ("superpixel_random_walk", "superpixel_graph"),
        f"{batch}x20x{height}x{width}, {n_segments} superpixels",
        inputs=(target, segments, image),
        oracle=lambda target, segments, image: eager(target, segments, image.double() / 255, n),
        check=close(1e-5),
        rows={
            "ours": lambda target, segments, image: ops.superpixel_random_walk(
                target, segments, image, SIGMA, ITERATIONS, num_segments=n
            ),
            "eager": lambda target, segments, image: eager(target, segments, image, n),
            **peers(target, segments, image),
        },
    )


def one_image(target, segments, image):
    picture = np.ascontiguousarray(image[0].permute(1, 2, 0))
    return {"NumPy/SciPy": peer(numpy_scipy, (target[0].numpy(), segments[0].long().numpy(), picture))}


def bench_superpixel_walk(bench):
    compare(bench, photographs(1, 512), 1100, one_image)


def bench_superpixel_walk_batch(bench):
    compare(bench, photographs(32, 512), 1100, lambda *_: {})


def bench_superpixel_walk_large(bench):
    """A camera's photograph."""
    compare(bench, photographs(1, 2500)[..., :1500, :].contiguous(), 5000, one_image)


def bench_walk_over_a_shared_graph(bench):
    """What every target after the first costs."""
    image, target = photographs(1, 512), class_maps(1, 20, 512, 512).sigmoid()
    segments, num = ops.slic(image, return_num=True)
    graph = ops.superpixel_graph(segments, image, SIGMA, num_segments=int(num))
    labels, picture = segments[0].long().numpy(), np.ascontiguousarray(image[0].permute(1, 2, 0))
    own_graph = cache(lambda: numpy_graph(labels, picture))  # made in the run that is checked
    exact = reference.superpixel_graph(segments, image.double() / 255, SIGMA, False, int(num), True)
    bench.compare(
        "superpixel_random_walk",
        "1x20x512x512, 1100 superpixels, over a graph",
        inputs=(target, *graph),
        oracle=lambda target, segments, *_: reference.superpixel_random_walk(
            target, segments, *(part.to(target.device) for part in exact), ITERATIONS
        ),
        check=close(1e-5),
        rows={
            "ours": lambda target, *graph: ops.superpixel_random_walk(
                target, iterations=ITERATIONS, graph=ops.SuperpixelGraph(*graph)
            ),
            "eager": lambda target, *graph: reference.superpixel_random_walk(target, *graph, ITERATIONS),
            "NumPy/SciPy": peer(
                lambda target, segments: numpy_walk(target, segments, own_graph()), (target[0].numpy(), labels)
            ),
        },
    )
