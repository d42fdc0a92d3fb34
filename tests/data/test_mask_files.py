"""Masks on disk, as people and encoders write them."""

import numpy as np
import pytest
from PIL import Image

from camguide_fast.data import VOC_PALETTE, mask_files, mask_made_by, read_mask, write_mask
from camguide_fast.errors import DataError

LABELS = np.array([[0, 1, 2, 2], [5, 255, 0, 0], [15, 15, 20, 0]], np.uint8)


def test_palette_is_vocs():
    assert VOC_PALETTE[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert VOC_PALETTE[[15, 20, 255]].tolist() == [[192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert len({tuple(colour) for colour in VOC_PALETTE.tolist()}) == 256


def test_mask_round_trip(tmp_path):
    labels = np.array([[0, 1, 2], [5, 255, 0]], np.int64)
    path = tmp_path / "m.png"
    write_mask(path, labels)
    assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(read_mask(path, 5, (2, 3)), labels)
    Image.open(path).convert("RGB").save(path)
    np.testing.assert_array_equal(read_mask(path, 5, (2, 3)), labels)
    Image.fromarray(labels.astype(np.uint8)).save(path)
    result = read_mask(path, 5)
    np.testing.assert_array_equal(result, labels)
    assert result.dtype == np.uint8
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_mask_errors(tmp_path):
    path = tmp_path / "m.png"
    write_mask(path, np.array([[0, 3]]))
    with pytest.raises(DataError, match=r"m.png: label 3 in the mask, expected 0 to 2 or 255"):
        read_mask(path, 2)
    with pytest.raises(DataError, match=r"m.png: the mask is 2x1, its image is 6x5"):
        read_mask(path, 3, (5, 6))
    Image.new("RGB", (2, 2), (1, 2, 3)).save(path)
    with pytest.raises(DataError, match=r"colour \(1, 2, 3\) is not of the VOC palette"):
        read_mask(path, 3)
    Image.new("RGB", (2, 2), (255, 255, 255)).save(path)  # beyond the largest colour of the palette
    with pytest.raises(DataError, match=r"colour \(255, 255, 255\)"):
        read_mask(path, 3)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable mask"):
        read_mask(path, 3)


def test_write_mask_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    write_mask(path, np.array([[1]]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mask_files.os, "replace", full)
    with pytest.raises(DataError, match=r"m.png: cannot be written \(No space left on device\)"):
        write_mask(path, np.array([[2]]))
    assert read_mask(path, 2).tolist() == [[1]] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("labels", [np.zeros((2, 2)), np.zeros(4, int), np.array([[256]]), np.array([[-1]])])
def test_write_mask_refuses(tmp_path, labels):
    with pytest.raises(ValueError, match="integers in 0..255"):
        write_mask(tmp_path / "m.png", labels)


def test_a_mask_says_what_it_is_made_from(tmp_path):
    write_mask(tmp_path / "a.png", np.zeros((3, 4), np.uint8), "these settings")
    write_mask(tmp_path / "b.png", np.zeros((3, 4), np.uint8))
    assert mask_made_by(tmp_path / "a.png") == "these settings"
    assert mask_made_by(tmp_path / "b.png") == mask_made_by(tmp_path / "none.png") == ""
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    assert mask_made_by(tmp_path / "a.png") == ""


def palette_png(path, indices, colours) -> None:
    picture = Image.fromarray(np.asarray(indices, np.uint8))
    picture.putpalette(np.asarray(colours, np.uint8).tobytes())
    picture.save(path)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "RGBA", "LA", "I;16"])
def test_labels_in_every_kind_of_png(tmp_path, mode):
    path = tmp_path / "m.png"
    write_mask(path, LABELS)
    coloured = Image.open(path)
    if mode == "I;16":
        picture = Image.fromarray(LABELS.astype(np.uint16))
    else:
        picture = Image.fromarray(LABELS).convert(mode) if mode in ("L", "LA") else coloured.convert(mode)
    picture.save(path)
    with Image.open(path) as file:
        assert file.mode in (mode, "I")  # "I": what an older Pillow makes of 16 bits
    np.testing.assert_array_equal(read_mask(path, 20), LABELS)


def test_transparency_is_dropped(tmp_path):
    colours = np.dstack([VOC_PALETTE[LABELS], np.full(LABELS.shape, 90, np.uint8)])
    Image.fromarray(colours).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 20), LABELS)


def test_one_bit(tmp_path):
    Image.fromarray(LABELS > 2).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 1), LABELS > 2)


def test_every_colour_of_vocs_palette(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(VOC_PALETTE[labels]).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 254), labels)


@pytest.mark.parametrize("channel, value", [(0, 1), (1, 31), (2, 32), (2, 63)])
def test_no_colour_beside_the_palette_passes(tmp_path, channel, value):
    colours = VOC_PALETTE[LABELS].copy()
    colours[1, 2, channel] += value
    Image.fromarray(colours).save(tmp_path / "m.png")
    expected = tuple(value if i == channel else 0 for i in range(3))
    with pytest.raises(DataError, match="m.png: colour ") as caught:
        read_mask(tmp_path / "m.png", 20)
    assert str(expected) in str(caught.value) and "write the labels as a grey or palette PNG" in str(caught.value)


def test_sixteen_bits_that_are_no_labels(tmp_path):
    Image.fromarray(LABELS.astype(np.uint16) * 257).save(tmp_path / "m.png")  # 255 became 65535, and 1 257
    with pytest.raises(DataError, match="label 257 in the mask, expected 0 to 20 or 255"):
        read_mask(tmp_path / "m.png", 20)


@pytest.mark.parametrize("filled", [0, 1, 249], ids="{} black behind".format)
def test_an_encoder_reordered_the_palette(tmp_path, filled):
    used = np.unique(LABELS)
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(used)  # index -> label
        indices = np.argsort(order)[np.searchsorted(used, LABELS)]
        assert np.array_equal(order[indices], LABELS) and not np.array_equal(indices, LABELS)
        palette_png(tmp_path / "m.png", indices, [*VOC_PALETTE[order], *[(0, 0, 0)] * filled])
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 20), LABELS)


def test_pillow_reduces_the_palette(tmp_path):
    write_mask(tmp_path / "m.png", LABELS)
    reduced = Image.open(tmp_path / "m.png").remap_palette([255, 20, 15, 5, 2, 1, 0])
    assert set(np.array(reduced).ravel().tolist()) == set(range(7))
    reduced.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 20), LABELS)


@pytest.mark.parametrize(
    "colours",
    [
        [(0, 0, 0), (255, 0, 0), (0, 128, 0)],  # not VOC's
        [(0, 0, 0), (0, 128, 0), (0, 128, 0)],  # one colour twice
        [(0, 0, 0), (0, 64, 128), (192, 0, 0)],  # would be 20 and 9, of which there are no classes
        [(0, 0, 0), (128, 0, 0), (0, 0, 0), (0, 0, 0)],  # says nothing about 2
        [(i, i, i) for i in range(256)],  # greys
    ],
    ids=["own", "twice", "no labels", "short", "grey"],
)
def test_any_other_palette_is_decoration(tmp_path, colours):
    labels = np.array([[0, 1, 2]], np.uint8)
    palette_png(tmp_path / "m.png", labels, colours)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 5), labels)


def test_void_behind_a_short_palette_stays_void(tmp_path):
    labels = np.array([[1, 255]], np.uint8)
    palette_png(tmp_path / "m.png", labels, [*VOC_PALETTE[:21], *[(0, 0, 0)] * 235])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 20), labels)


def test_a_mask_of_another_mode_is_refused(tmp_path):
    Image.fromarray(VOC_PALETTE[LABELS]).convert("CMYK").save(tmp_path / "m.jpg")
    with pytest.raises(DataError, match="m.jpg: a mask must be a palette, grey or RGB image, found mode CMYK"):
        read_mask(tmp_path / "m.jpg", 20)
