"""slic: the C++ row equals the twin bit for bit, on any threads and at any size."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.measure import label as measure_label
from support.slic import PICTURES, crop, tensor

from camguide_fast import ops, reference
from camguide_fast.reference.slic import seed_grid

SPREAD = [  # height, width, n_segments, compactness, iterations, min_size_factor
    (1, 1, 1, 10.0, 10, 0.5),
    (1, 37, 5, 10.0, 10, 0.5),
    (61, 1, 61, 10.0, 3, 0.5),
    (16, 64, 12, 10.0, 10, 0.0),
    (17, 65, 12, 10.0, 10, 0.5),
    (15, 63, 300, 1.0, 10, 0.5),
    (90, 131, 1, 10.0, 2, 0.5),
    (90, 131, 2, 0.05, 10, 0.0),
    (90, 131, 40, 0.05, 10, 0.25),
    (90, 131, 40, 1e6, 10, 2.0),
    (40, 50, 2000, 10.0, 4, 0.5),
    (40, 50, 1999, 3.0, 4, 0.0),
    (12, 150, 9, 10.0, 10, 0.5),
    (200, 33, 70, 20.0, 1, 0.5),
    (131, 129, 60, 10.0, 4, 0.5),
    (65, 64, 30, 0.3, 5, 1.0),
]


@pytest.mark.parametrize("case", SPREAD, ids=str)
@pytest.mark.parametrize("kind", ["photo", "noise", "black and white"])
def test_native_equals_twin(case, kind):
    """Bit for bit: through windows, ties, empty centres, blocks cut by the border."""
    height, width, *settings = case
    image = {
        "photo": tensor(crop("chelsea", height, width)),
        "noise": torch.rand(2, 3, height, width),
        "black and white": torch.randint(0, 2, (1, 1, height, width), dtype=torch.uint8).mul(255).expand(-1, 3, -1, -1),
    }[kind]
    both = zip(ops.slic(image, *settings, return_num=True), reference.slic(image, *settings), strict=True)
    assert all(torch.equal(ours, twin) for ours, twin in both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_native_equals_twin_in_every_dtype(dtype):
    image = (torch.rand(2, 3, 35, 50, dtype=torch.float64) * 1.9 - 0.45).to(dtype)
    assert torch.equal(ops.slic(image, 20), reference.slic(image, 20, 10.0, 10, 0.5)[0])


def test_every_colour_equals_twin():
    """Each of the 256 values in each channel, stretched and not."""
    ramp = torch.arange(256, dtype=torch.uint8)
    image = torch.stack([ramp, ramp.flip(0), ramp.roll(100)])[None, :, None]
    for picture in (image, image.transpose(2, 3), ramp.expand(1, 3, 1, 256), (image * 0.7 + 11).to(torch.uint8)):
        assert torch.equal(ops.slic(picture, 30), reference.slic(picture, 30, 10.0, 10, 0.5)[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_do_not_matter(same_bits_on_any_threads, batch):
    images = torch.cat([tensor(crop(name, 200, 180)) for name in PICTURES[:batch]])
    same_bits_on_any_threads(lambda: [ops.slic(images, 150, min_size_factor=factor) for factor in (0.5, 0)])


def test_large_photograph():
    if ops.backends()["slic"]["cpu"].backend != "native":
        pytest.skip("minutes without the C++ extension")
    photo = Image.fromarray(skimage.data.coffee()).resize((2500, 1500))
    image = tensor(np.array(photo))
    segments = ops.slic(image, 5000)[0]
    rows, columns = seed_grid(1500, 2500, 5000).count
    sizes = torch.bincount(segments.flatten())
    assert int(sizes.min()) >= int(0.5 * 1500 * 2500 / (rows * columns))
    assert 4000 < len(sizes) <= ops.max_segments(1500, 2500, 5000)
    assert measure_label(segments.numpy() + 1, connectivity=1).max() == len(sizes)
