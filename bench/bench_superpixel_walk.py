"""superpixel_random_walk, with its graph and over one that is there: the peer is NumPy and SciPy's sparse matrices."""

import numpy as np
import torch
from _check import close
from _harness import compare
from _inputs import class_maps, photographs
from _rows import Row

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
    return Row(f, inputs, result=lambda out: torch.from_numpy(out)[None], on_cpu=True, needs="skimage.color")


def arrays(target, segments, image):
    """Of the first image."""
    return target[0].numpy(), segments[0].long().numpy(), np.ascontiguousarray(image[0].permute(1, 2, 0))


def eager(target, segments, image, n):
    graph = reference.superpixel_graph(segments, image, SIGMA, False, n, True)
    return reference.superpixel_random_walk(target, segments, *graph, ITERATIONS)


def of(images, shape, n_segments, peers):
    """Graph and walk of a batch."""
    batch, height, width = shape
    n = ops.max_segments(height, width, n_segments)

    def inputs():
        image = images()
        return class_maps(batch, 20, height, width).sigmoid(), ops.slic(image, n_segments), image

    return compare(
        ("superpixel_random_walk", "superpixel_graph"),
        f"{batch}x20x{height}x{width}, {n_segments} superpixels",
        inputs=inputs,
        oracle=lambda target, segments, image: eager(target, segments, image.double() / 255, n),
        check=close(1e-5),
        rows={
            "ours": lambda target, segments, image: ops.superpixel_random_walk(
                target, segments, image, SIGMA, ITERATIONS, num_segments=n
            ),
            "eager": lambda target, segments, image: eager(target, segments, image, n),
            **peers,
        },
    )


NUMPY = {"NumPy/SciPy": peer(numpy_scipy, arrays)}

bench_superpixel_walk = of(lambda: photographs(1, 512), (1, 512, 512), 1100, NUMPY)
bench_superpixel_walk_batch = of(lambda: photographs(32, 512), (32, 512, 512), 1100, {})
bench_superpixel_walk_large = of(  # a camera's photograph
    lambda: photographs(1, 2500)[..., :1500, :].contiguous(), (1, 1500, 2500), 5000, NUMPY
)


def over_a_graph():
    image = photographs(1, 512)
    segments, num = ops.slic(image, return_num=True)
    graph = ops.superpixel_graph(segments, image, SIGMA, num_segments=int(num))
    return class_maps(1, 20, 512, 512).sigmoid(), *graph


def exact(target, segments, counts, *_):
    image = photographs(1, 512).to(target.device).double() / 255
    graph = reference.superpixel_graph(segments, image, SIGMA, False, counts.shape[1], True)
    return reference.superpixel_random_walk(target, segments, *graph, ITERATIONS)


def numpy_inputs(target, segments, *_):
    target, segments, picture = arrays(target, segments, photographs(1, 512))
    return target, segments, numpy_graph(segments, picture)


bench_walk_over_a_shared_graph = compare(  # what every target after the first costs
    "superpixel_random_walk",
    "1x20x512x512, 1100 superpixels, over a graph",
    inputs=over_a_graph,
    oracle=exact,
    check=close(1e-5),
    rows={
        "ours": lambda target, *graph: ops.superpixel_random_walk(
            target, iterations=ITERATIONS, graph=ops.SuperpixelGraph(*graph)
        ),
        "eager": lambda target, *graph: reference.superpixel_random_walk(target, *graph, ITERATIONS),
        "NumPy/SciPy": peer(numpy_walk, numpy_inputs),
    },
)
