"""slic: scikit-image's labels, and the connectivity rule."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.io import imread
from skimage.segmentation import slic as skimage_slic
from skimage.util import regular_grid

from camguide_fast import ops
from camguide_fast.reference._lab import lab
from camguide_fast.reference.slic import _components, _merge_small, seed_grid

PICTURES = ["astronaut", "chelsea", "coffee", "rocket"]
VOC_NAMES = ["2007_000063", "2008_000765", "2008_003344", "2008_008370", "2009_003825"]


def tensor(picture: np.ndarray) -> torch.Tensor:  # [H, W, 3] -> [1, 3, H, W]
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]


def crop(name: str, height: int = 256, width: int = 256) -> np.ndarray:
    picture = getattr(skimage.data, name)()
    return picture[20 : 20 + height, 120 : 120 + width]


def peer(picture: np.ndarray, n_segments: int, compactness: float = 10.0, iterations: int = 10) -> np.ndarray:
    return skimage_slic(
        picture,
        n_segments,
        compactness,
        iterations,
        start_label=0,
        enforce_connectivity=False,
        channel_axis=-1,
    )


def raw(image: torch.Tensor, n_segments: int, **settings) -> np.ndarray:
    return ops.slic(image, n_segments, min_size_factor=0, **settings)[0].numpy()


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("n_segments", [60, 275])
def test_labels_of_scikit_image(name, n_segments):
    picture = crop(name)
    assert np.mean(raw(tensor(picture), n_segments) == peer(picture, n_segments)) >= 0.999


@pytest.mark.parametrize("name", VOC_NAMES)
def test_labels_of_scikit_image_on_voc(voc, name):
    picture = imread(voc / "JPEGImages" / f"{name}.jpg")[:256, :256]
    assert np.mean(raw(tensor(picture), 275) == peer(picture, 275)) >= 0.999


@pytest.mark.parametrize(
    "settings",
    [dict(compactness=0.1), dict(compactness=1000.0), dict(iterations=1), dict(iterations=3)],
    ids=str,
)
def test_settings_of_scikit_image(settings):
    picture = crop("coffee", 128, 150)
    assert np.mean(raw(tensor(picture), 60, **settings) == peer(picture, 60, **settings)) >= 0.998


@pytest.mark.parametrize(
    "height, width, n_segments",
    [
        (1, 1, 1),
        (1, 50, 7),
        (40, 3, 9),
        (50, 70, 1),
        (37, 91, 400),
        (32, 32, 1024),
        (32, 32, 1000),
        (9, 5, 10_000),
    ],
)
def test_odd_shapes_equal_scikit_image(height, width, n_segments):
    picture = crop("astronaut", height, width)
    image = tensor(picture)
    np.testing.assert_array_equal(raw(image, n_segments), peer(picture, n_segments))
    connected = ops.slic(image, n_segments)
    assert connected.dtype == torch.int32 and connected.shape == (1, height, width)
    assert int(connected.max()) < ops.max_segments(height, width, n_segments)
    assert raw(image, n_segments).max() < ops.max_segments(height, width, n_segments, 0)


def test_constant_image_and_ties():
    """Every pixel between two seeds is a tie: the lower index has it, also across a 1/2 pixel mean."""
    flat = np.full((64, 48, 3), 77, np.uint8)
    np.testing.assert_array_equal(raw(tensor(flat), 50), peer(flat, 50))
    row = raw(torch.zeros(1, 3, 1, 4), 2, iterations=1)  # seeds at 1 and 3, pixel 2 between them
    assert row.tolist() == [[0, 0, 0, 1]]


def test_seed_grid_equals_regular_grid():
    for height, width in [(1, 1), (1, 9), (7, 500), (500, 7), (33, 34), (512, 512), (375, 500)]:
        for points in [1, 2, 3, 5, 17, 100, 1100, height * width - 1, height * width, height * width + 1]:
            if points < 1:
                continue
            slices = regular_grid((1, height, width), points)[1:]
            count = tuple(len(range(*s.indices(n))) for s, n in zip(slices, (height, width), strict=True))
            window = regular_grid((1, height, width), math.prod(count))[1:]
            grid = seed_grid(height, width, points)
            assert grid.start == tuple(s.start or 0 for s in slices)
            assert grid.step == tuple(s.step or 1 for s in slices)
            assert grid.count == count
            assert grid.reach == tuple(s.step or 1 for s in window)
    assert seed_grid(512, 512, 1100).count == (34, 34)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 3e-4)], ids=str)
def test_lab(dtype, bound):
    steps = torch.linspace(0, 1, 18, dtype=torch.float64)
    rgb = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 18, -1)
    expected = rgb2lab(rgb[0].numpy(), channel_axis=0)
    assert np.abs(lab(rgb.to(dtype))[0].double().numpy() - expected).max() <= bound


def test_range_strides_and_dtypes():
    picture = crop("chelsea", 90, 70)
    image = tensor(picture)
    expected = ops.slic(image, 40)
    assert torch.equal(ops.slic(image.double() * 3 - 50, 40), expected)  # the range of the image does not matter
    assert torch.equal(ops.slic(image.float(), 40), expected)
    assert torch.equal(ops.slic(image.half(), 40), expected)  # 0-255 are exact in fp16
    assert torch.equal(ops.slic(image.bfloat16(), 40), expected)
    strided = image.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(ops.slic(strided, 40), expected)


def test_batch_is_image_by_image():
    images = torch.cat([tensor(crop(name, 90, 70)) for name in PICTURES])
    together = ops.slic(images, 40)
    for i in range(len(images)):
        assert torch.equal(together[i : i + 1], ops.slic(images[i : i + 1], 40))
    assert torch.equal(ops.slic(images, 40), together)


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


def test_opcheck_and_compile():
    image = tensor(crop("rocket", 33, 40))
    torch.library.opcheck(torch.ops.camguide_fast.slic.default, (image, 12, 10.0, 3, 0.5))
    compiled = torch.compile(lambda x: ops.slic(x, 12) + 1, fullgraph=True)
    assert torch.equal(compiled(image), ops.slic(image, 12) + 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image=torch.zeros(3, 4, 4)), "image must have 4"),
        (dict(image=torch.zeros(1, 1, 4, 4)), "image must be RGB"),
        (dict(image=torch.zeros(1, 3, 4, 4, dtype=torch.int32)), "image must be one of"),
        (dict(image=torch.full((1, 3, 4, 4), torch.nan)), "image holds NaN"),
        (dict(n_segments=0), "n_segments"),
        (dict(compactness=0.0), "compactness"),
        (dict(iterations=0), "iterations"),
        (dict(min_size_factor=-0.5), "min_size_factor"),
    ],
)
def test_errors(change, message):
    arguments = dict(image=torch.zeros(1, 3, 4, 4)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.slic(**arguments)
