"""CAMs over several scales and both views of an image."""

import pytest
import torch
from support.cams import CARD, COARSE, Colours, built, photo

from camguide_fast.cams import class_maps, multi_scale_cam
from camguide_fast.cams.multi_scale import mean_logits, merge_maps, scale_maps


@pytest.fixture(scope="module")
def student():
    return built(CARD)


@pytest.fixture(scope="module")
def coarse():
    return built(COARSE)


def test_class_maps_feeds_each_network_what_it_wants(student, coarse):
    image = photo((32, 48))[None]
    with torch.no_grad():
        maps = class_maps(coarse, image)
        assert torch.equal(maps, coarse(coarse.backbone.input(image)))
        assert torch.allclose(maps, class_maps(coarse, image / 255), atol=1e-5)
        refined = class_maps(student, image)
        assert torch.equal(refined, student(student.backbone.input(image), image / 255))
    assert maps.shape == (1, 3, 2, 3) and refined.shape == (1, 3, 8, 12)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 16), (17, 31), (50, 33), (3, 100)])
def test_any_size(student, size):
    cam = multi_scale_cam(student, photo(size), [2, 0])
    assert cam.shape == (2, *size) and cam.dtype == torch.float32
    assert cam.isfinite().all() and cam.min() >= 0 and cam.max() < 1


def test_one_scale_by_hand(coarse):
    image = photo((32, 48))
    with torch.no_grad():
        plain = class_maps(coarse, image[None])
        mirrored = class_maps(coarse, image.flip(2)[None]).flip(3)
    expected = (plain.relu() + mirrored.relu())[:, [1]]
    expected = torch.nn.functional.interpolate(expected, (32, 48), mode="bilinear")[0]
    expected /= expected.max() + 1e-5
    assert torch.allclose(multi_scale_cam(coarse, image, [1], scales=(1.0,)), expected, atol=1e-5)


def test_relu_comes_before_the_sum():
    maps = [torch.tensor([[[[-3.0, 2.0]]], [[[1.0, 0.0]]]])]  # [2, 1, 1, 2]
    assert torch.allclose(merge_maps(maps, [0], (1, 2)), torch.tensor([[[0.5, 1.0]]]), atol=1e-5)


def test_own_maximum_and_zeros():
    maps = [torch.tensor([[[[8.0, 4.0]], [[0.5, 1.0]], [[-1.0, -2.0]]]])]  # [1, 3, 1, 2]
    cam = merge_maps(maps, [0, 1, 2], (1, 2))
    assert torch.allclose(cam, torch.tensor([[[1.0, 0.5]], [[0.5, 1.0]], [[0.0, 0.0]]]), atol=2e-5)


def test_mirror_image_gives_the_mirrored_cam(student):
    image = photo((37, 51))
    cam = multi_scale_cam(student, image, [0, 1, 2], scales=(0.5, 1.0))
    mirrored = multi_scale_cam(student, image.flip(2).contiguous(), [0, 1, 2], scales=(0.5, 1.0)).flip(2)
    assert torch.allclose(cam, mirrored, atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [(120, 200), (125, 187)])
def test_cam_lies_where_the_object_is(scale, size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    height, width = size
    image[0, height // 4 : height // 2, width // 2 : width * 3 // 4] = 255
    cam = multi_scale_cam(Colours(), image, [0], scales=(scale,))[0]
    y, x = (cam.sum(d) @ torch.arange(n).float() / cam.sum() for d, n in ((1, height), (0, width)))
    half_a_cell = 8 / scale  # what the last cell may hang over the border
    assert abs(y - (height * 0.375 - 0.5)) < half_a_cell and abs(x - (width * 0.625 - 0.5)) < half_a_cell


def test_large_images_are_shrunk_first():
    maps = scale_maps(Colours(), photo((96, 960)), 1.0, max_side=320)
    assert maps.shape == (2, 3, 2, 20)
    assert scale_maps(Colours(), photo((96, 320)), 1.0, flip=False, max_side=320).shape == (1, 3, 6, 20)


def test_amp_is_close(coarse):
    image = photo((48, 64))
    exact, half = (multi_scale_cam(coarse, image, [0, 1], amp=amp) for amp in (False, True))
    assert half.dtype == torch.float32 and not torch.equal(exact, half)
    assert (exact - half).abs().max() < 0.1


def test_logits_are_the_mean_over_both_views():
    maps = torch.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])  # [2, 1, 1, 2]
    assert mean_logits(maps).tolist() == [4.0]
