"""slic: the connectivity rule."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.slic import crop, raw, tensor

from camguide_fast import ops
from camguide_fast.reference.slic import _components, _merge_small, seed_grid


@pytest.mark.parametrize("compactness", [0.3, 10.0])
def test_segments_are_connected_consecutive_and_large(compactness):
    picture = crop("coffee", 200, 180)
    segments = ops.slic(tensor(picture), 120, compactness)[0].numpy()
    rows, columns = seed_grid(200, 180, 120).count
    smallest = int(0.5 * 200 * 180 / (rows * columns))
    sizes = np.bincount(segments.ravel())
    assert sizes.min() >= smallest
    for label in range(len(sizes)):
        assert ndimage.label(segments == label)[1] == 1
    _, first = np.unique(segments, return_index=True)
    assert (np.diff(first) > 0).all()  # numbered by their first pixel


def test_large_segments_are_left_alone():
    """Where no component is small, connectivity only numbers them anew."""
    image = torch.zeros(1, 3, 40, 40)
    before, after = raw(image, 16), ops.slic(image, 16)[0].numpy()
    assert len(np.unique(before * 1000 + after)) == len(np.unique(before)) == len(np.unique(after)) == 16


def test_components_by_another_algorithm():
    labels = torch.randint(0, 2, (61, 47))
    ours = _components(labels).numpy()
    theirs = np.zeros_like(ours)
    for value in (0, 1):
        component, n = ndimage.label(labels.numpy() == value)
        for i in range(1, n + 1):
            theirs[component == i] = np.flatnonzero(component == i)[0]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "labels, smallest, expected",
    [
        ([[0, 0, 1, 2, 2]], 2, [[0, 0, 0, 1, 1]]),  # to the left
        ([[0, 0, 0], [1, 2, 2]], 2, [[0, 0, 0], [0, 1, 1]]),  # at the left border: up
        ([[0, 0, 1, 2, 3, 3]], 2, [[0, 0, 0, 0, 1, 1]]),  # a chain of two
        ([[9, 1, 1, 1]], 2, [[0, 0, 0, 0]]),  # the first one: to the first pixel outside
        ([[9, 8, 1, 1]], 2, [[0, 0, 1, 1]]),  # the first one has grown enough
        ([[9, 8, 1, 1, 1]], 3, [[0, 0, 0, 0, 0]]),  # or not
        ([[9], [1], [1], [2], [2]], 2, [[0], [0], [0], [1], [1]]),
        ([[0, 1, 0, 1]], 0, [[0, 1, 2, 3]]),  # equal labels apart are components of their own
        ([[3, 4], [5, 6]], 100, [[0, 0], [0, 0]]),  # an image below the minimum
    ],
)
def test_merging_by_hand(labels, smallest, expected):
    assert _merge_small(_components(torch.tensor(labels)), smallest).tolist() == expected
