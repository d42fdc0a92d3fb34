"""The generated data set."""

import numpy as np
import pytest

from camguide_fast.data import full_images, make_demo, open_split
from camguide_fast.data.demo_pictures import CLASSES, demo_picture
from camguide_fast.errors import DataError

SMALL = {"train": 6, "val": 2, "size": 64}


def _content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _stamps(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_set_is_a_voc_tree(tmp_path):
    root = make_demo(tmp_path / "new" / "demo", **SMALL)
    train, val = open_split(root, "train"), open_split(root, "val")
    assert (len(train), len(val), train.classes) == (6, 2, CLASSES)
    for split in (train, val):
        for item, record in zip(full_images(split), split, strict=True):
            assert item["image"].shape[1:] == item["mask"].shape and all(
                56 <= side <= 72 for side in item["mask"].shape
            )
            assert {int(label) - 1 for label in item["mask"].unique() if label} == set(record.tags) != set()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo"]  # nothing is left behind


def test_same_seed_same_files(tmp_path):
    first, second = make_demo(tmp_path / "a", **SMALL), make_demo(tmp_path / "b", **SMALL)
    other = make_demo(tmp_path / "c", seed=1, **SMALL)
    assert _content(first) == _content(second)
    image = next(path for path in _content(first) if path.suffix == ".jpg")
    assert _content(first)[image] != _content(other)[image]


def test_splits_share_no_picture():
    assert not np.array_equal(demo_picture(0, "train", 0)[1], demo_picture(0, "val", 0)[1])


def test_complete_set_is_kept_others_are_made_anew(tmp_path):
    root = make_demo(tmp_path / "demo", **SMALL)
    stamps, content = _stamps(root), _content(root)
    make_demo(root, **SMALL)
    assert _stamps(root) == stamps
    for broken in (
        "demo.json",
        "JPEGImages/demo_train_00003.jpg",
        "labels.json",
        "ImageSets/Segmentation/val.txt",
    ):
        (root / broken).unlink()
        make_demo(root, **SMALL)
        assert _content(root) == content, broken
    make_demo(root, **SMALL | {"val": 3})
    assert len(open_split(root, "val")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    root = make_demo(tmp_path / "demo", **SMALL)
    (root / "JPEGImages/mine.jpg").write_text("x")
    content = _content(root)
    with pytest.raises(DataError, match="not empty and not a demo set"):
        make_demo(root, seed=1, **SMALL)
    assert _content(root) == content
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="not a demo set"):
        make_demo(tmp_path / "file", **SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/labels.json").write_text("{}")
    with pytest.raises(DataError, match="not a demo set"):
        make_demo(tmp_path / "other", **SMALL)
    make_demo(tmp_path / "file2", **SMALL)


@pytest.mark.parametrize("changes", [{"seed": -1}, {"train": 0}, {"val": 0}, {"size": 16}])
def test_settings(tmp_path, changes):
    with pytest.raises(DataError, match="a demo set needs"):
        make_demo(tmp_path / "demo", **SMALL | changes)
    assert not list(tmp_path.iterdir())


def test_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write the demo set"):
        make_demo(tmp_path / "file" / "demo", **SMALL)


def test_pictures_suit_their_purpose():
    """Classes equally common, animals large enough, bodies apart from their ground."""
    first, share, contrast = [], [], []
    for index in range(40):
        image, mask = demo_picture(0, "train", index)
        labels = [int(label) for label in np.unique(mask) if label]
        first.append(set(labels))
        share.append((mask > 0).mean())
        contrast.append(np.linalg.norm(np.median(image[mask > 0], 0) - np.median(image[mask == 0], 0)))
    for label in range(1, 6):
        assert sum(label in labels for labels in first) >= 8
    assert 0.1 < np.mean(share) < 0.3 and min(share) > 0.04
    assert np.median(contrast) > 60
