"""superpixel_random_walk of labels: what the walk of their one-hot maps gives."""

import pytest
import torch

from camguide_fast import ops
from camguide_fast.data import open_split, read_image


def by_maps(labels, segments, image, num_labels, ignore=255, **settings):
    one_hot = torch.stack([labels == label for label in range(num_labels)], 1).float()
    walked = ops.superpixel_random_walk(one_hot, segments, image, **settings)
    return walked.argmax(1).to(labels.dtype).masked_fill(labels == ignore, ignore)


def case(batch, height, width, num_labels, dtype=torch.uint8, unknown=0.1):
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    labels = torch.randint(0, num_labels, (batch, height, width), dtype=dtype)
    labels[torch.rand(labels.shape) < unknown] = 255
    return labels, ops.slic(image, max(1, height * width // 12)), image


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 19), (1, 23, 1), (3, 31, 47)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_equals_the_walk_of_maps(shape, dtype, squared):
    labels, segments, image = case(*shape, 5, dtype)
    settings = dict(iterations=7, squared=squared)
    walked = ops.superpixel_random_walk(labels, segments, image, num_labels=5, **settings)
    assert walked.dtype == dtype and torch.equal(walked, by_maps(labels, segments, image, 5, **settings))


def test_on_photographs(voc):
    for record in list(open_split(voc, "val"))[:6]:
        image = torch.from_numpy(read_image(record.image)).permute(2, 0, 1)[None]
        coarse = torch.randint(0, 3, (1, 1, 9, 9)).float()
        labels = torch.nn.functional.interpolate(coarse, image.shape[2:]).to(torch.uint8)[:, 0]
        segments = ops.slic(image, 1100)
        walked = ops.superpixel_random_walk(labels, segments, image, num_labels=3)
        assert torch.equal(walked, by_maps(labels, segments, image, 3))


def test_ignored_pixels_keep_their_label_and_weaken_their_superpixel():
    image = torch.zeros(1, 3, 1, 8, dtype=torch.uint8)
    segments = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    labels = torch.tensor([[[1, 255, 255, 255, 0, 0, 2, 2]]])
    walked = ops.superpixel_random_walk(labels, segments, image, iterations=1, num_labels=3)  # they swap
    assert walked.tolist() == [[[0, 255, 255, 255, 1, 1, 1, 1]]]


def test_shared_graph_strides_and_threads(same_bits_on_any_threads):
    labels, segments, image = case(2, 40, 33, 4)
    graph = ops.superpixel_graph(segments, image)
    same_bits_on_any_threads(lambda: [ops.superpixel_random_walk(labels, graph=graph, num_labels=4)])
    strided = labels.transpose(1, 2).contiguous().transpose(1, 2)
    expected = ops.superpixel_random_walk(labels, segments, image, num_labels=4)
    assert torch.equal(ops.superpixel_random_walk(strided, graph=graph, num_labels=4), expected)


def test_compile():
    labels, segments, image = case(1, 20, 24, 3)

    def walk(labels, segments, image):
        return ops.superpixel_random_walk(labels, segments, image, num_segments=50, num_labels=3)

    expected = walk(labels, segments, image)
    assert torch.equal(torch.compile(walk, fullgraph=True)(labels, segments, image), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_labels=0), "num_labels must be an integer >= 1"),
        (dict(num_labels=2), r"target must be in \[0, 2\) \(num_labels\) or 255, got 0 to 3"),
        (dict(num_labels=None), "target must"),
        (dict(ignore=256), r"ignore must be an integer in \[0, 256\)"),
        (dict(target=torch.zeros(1, 2, 8, 8)), "target must"),
        (dict(target=torch.zeros(1, 8, 9, dtype=torch.uint8)), "target"),
    ],
)
def test_errors(change, message):
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    target = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) % 4
    arguments = dict(target=target, segments=torch.zeros(1, 8, 8, dtype=torch.int64), image=image, num_labels=4)
    with pytest.raises((ValueError, TypeError), match=message):
        ops.superpixel_random_walk(**arguments | change)


def test_more_labels_than_their_type_has():
    labels, segments, image = case(1, 20, 30, 5)
    expected = ops.superpixel_random_walk(labels, segments, image, num_labels=5)
    assert torch.equal(ops.superpixel_random_walk(labels, segments, image, num_labels=300), expected)


def test_labels_out_of_range_count_as_unknown_where_no_value_is_checked(monkeypatch):
    labels, segments, image = case(2, 20, 30, 5)
    wrong = labels.int().masked_fill(labels == 3, 7)
    wrong[0, 0, 0] = -1
    expected = ops.superpixel_random_walk(
        wrong.masked_fill((wrong > 4) | (wrong < 0), 255), segments, image, num_labels=5
    )
    monkeypatch.setattr(ops.superpixel_walk.check, "values", lambda _: False)
    assert torch.equal(ops.superpixel_random_walk(wrong, segments, image, num_labels=5), expected)
