"""Images and the random view."""

import cv2
import numpy as np
import pytest
from PIL import Image

from camguide_fast.data import is_turned, read_image, train_view, write_mask
from camguide_fast.data.augment import View, resize_long_side
from camguide_fast.data.images import image_size
from camguide_fast.errors import DataError, UserError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_rgb_png_is_read_as_it_is(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, pixels)


def test_other_modes_become_rgb(tmp_path, pixels):
    grey, path = pixels[..., 0], tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(grey[..., None], 3, 2))
    Image.fromarray((grey.astype(np.uint16) << 8) + 7).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(np.dstack([pixels, grey])).save(path)
    np.testing.assert_array_equal(read_image(path), pixels)
    write_mask(path, np.full((3, 4), 2, np.uint8))
    np.testing.assert_array_equal(read_image(path), np.full((3, 4, 3), (0, 128, 0)))


def test_exif_orientation_is_applied(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_size_and_turn_are_read_from_the_head(tmp_path, pixels, suffix, orientation):
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2]
    assert is_turned(path) == (2 <= orientation <= 8)
    path.write_bytes(b"nothing")
    for read in (image_size, is_turned):
        with pytest.raises(DataError, match="not a readable image"):
            read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.97])
def test_truncated_image(tmp_path, pixels, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=rf"^{path}: not a readable image \(.+\)$") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_no_image_at_all(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("text.jpg", "absent.jpg", "."):
        with pytest.raises(DataError, match="not a readable image"):
            read_image(tmp_path / name)
    assert issubclass(DataError, UserError) and issubclass(UserError, ValueError)


def test_resize_keeps_the_aspect(pixels):
    assert resize_long_side(pixels, 30).shape == (20, 30, 3)
    assert resize_long_side(pixels, 90).shape == (60, 90, 3)
    assert resize_long_side(pixels[:1], 6).shape == (1, 6, 3)
    np.testing.assert_array_equal(resize_long_side(pixels, 60), pixels)


@pytest.mark.parametrize("long_side", [12, 20, 37])
def test_shrinking_averages_areas(pixels, long_side):
    """Noise has all frequencies: a filter that aliases is as far from the area's mean as noise is from its own."""
    size = (long_side, round(long_side * 40 / 60))
    area = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(float)
    aliased = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    assert 2 * np.abs(resize_long_side(pixels, long_side) - area).mean() < np.abs(aliased - area).mean()


@pytest.mark.parametrize("long_side", [17, 31, 60, 77, 133])
def test_a_mask_is_read_at_the_centres_of_its_new_pixels(long_side):
    mask = np.random.default_rng(1).integers(0, 5, (40, 60), np.uint8)
    width, height = long_side, round(long_side * 40 / 60)
    view = View(long_side, False, (0.0, 0.0), 1000).mask(mask, ignore=9)[:height, :width]

    def centres(new: int, old: int) -> list[np.ndarray]:
        """The old pixels in which the centres of the new ones lie; both of them for one between two."""
        twice = (2 * np.arange(new) + 1) * old  # in halves of 1 / new
        return [twice // (2 * new), (twice - 1) // (2 * new)]

    found = [view == mask[np.ix_(y, x)] for y in centres(height, 40) for x in centres(width, 60)]
    assert np.any(found, axis=0).all()


def test_small_image_is_repeated_outwards(pixels):
    places = set()
    for seed in range(30):
        view, valid = train_view(pixels, np.random.default_rng(seed), 64, (60, 60))
        assert view.shape == (64, 64, 3) and view.dtype == np.uint8 and valid.dtype == bool
        rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
        (top, bottom), (left, right) = (rows[0], rows[-1]), (columns[0], columns[-1])
        assert valid.sum() == 40 * 60 and (bottom - top, right - left) == (39, 59)
        inside = view[top : bottom + 1, left : right + 1]
        assert any(np.array_equal(inside, one) for one in (pixels, pixels[:, ::-1]))
        y, x = np.arange(64).clip(top, bottom), np.arange(64).clip(left, right)
        np.testing.assert_array_equal(view, view[y[:, None], x])
        places.add((top, left))
    assert {left for _, left in places} == set(range(5)) and len({top for top, _ in places}) > 10


def test_large_image_is_cropped_everywhere_and_flipped_half_the_time(pixels):
    ramp = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None], 3, 2).repeat(40, 0)  # value = column
    starts, flips = set(), 0
    for seed in range(300):
        view, valid = train_view(ramp, np.random.default_rng(seed), 32, (60, 60))
        assert valid.all()
        row = view[0, :, 0].astype(int)
        flipped = row[1] < row[0]
        np.testing.assert_array_equal(np.diff(row), -1 if flipped else 1)
        flips += flipped
        starts.add(row.min())
    assert starts == set(range(29)) and 120 < flips < 180


def test_long_side_is_drawn_from_the_whole_range():
    image = np.zeros((10, 20, 3), np.uint8)
    widths = {train_view(image, np.random.default_rng(seed), 32, (16, 24))[1].any(0).sum() for seed in range(200)}
    assert widths == set(range(16, 25))


@pytest.mark.parametrize("long_side, crop", [(60, 32), (30, 48), (90, 64)])
def test_masks_go_where_their_image_goes(long_side, crop):
    mask = np.zeros((60, 45), np.uint8)
    mask[20:50, 5:30] = 1
    image = np.repeat(mask[..., None] * 200, 3, 2)
    for seed in range(8):
        view = View.draw(np.random.default_rng(seed), crop, (long_side, long_side))
        pixels, valid = view.image(image)
        labels = view.mask(mask)
        assert labels.shape == (crop, crop) and np.array_equal(labels == 255, ~valid)
        sharp = valid & ((pixels[..., 0] < 20) | (pixels[..., 0] > 180))  # resizing blurs borders
        assert np.array_equal(labels[sharp], (pixels[..., 0] > 100)[sharp].astype(np.uint8))
        assert sharp.sum() > 0.7 * valid.sum()


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png", ".webp"])
def test_a_turned_picture_is_upright_in_every_format(tmp_path, suffix):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:, 15:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / f"a{suffix}", exif=exif)
    shown = read_image(tmp_path / f"a{suffix}")
    assert shown.shape == upright.shape and np.abs(shown.astype(int) - upright).mean() < 4
