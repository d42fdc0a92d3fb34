"""Folders of images, with a tag file and without."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camguide_fast.data import left_out, open_images, open_split, read_image, write_mask
from camguide_fast.errors import DataError

CSV = "image,tags,split\na.jpg,cat,train\nsub/b.png, cat ; dog ,train\nc.webp,,val\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.jpg", "sub/b.png", "c.webp", "unlisted.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "masks/sub").mkdir(parents=True)
    write_mask(tmp_path / "masks/sub/b.png", np.zeros((6, 8), np.uint8))
    return tmp_path


def _fails(root: Path, message: str, name: str = "train") -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_split(root, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stem", ["tags", "labels"])
def test_csv(folder, stem):
    (folder / f"{stem}.csv").write_text(CSV)
    split = open_split(folder, "train")
    assert split.classes == ("cat", "dog")
    assert [(record.name, record.tags) for record in split] == [("a", (0,)), ("sub/b", (0, 1))]
    assert split.records[1].image == folder / "sub/b.png" and split.records[1].mask == folder / "masks/sub/b.png"
    assert split.records[0].mask is None
    assert [record.tags for record in open_split(folder, "val")] == [()]
    _fails(folder, r"no split 'test' \(splits there: train, val\)", "test")


def test_json_with_splits_and_classes(folder):
    (folder / "tags.json").write_text(json.dumps({"a.jpg": ["dog"], "sub/b.png": []}))
    (folder / "classes.txt").write_text("dog\nbird\n")
    assert [record.name for record in open_split(folder, "train")] == ["a", "sub/b"]
    _fails(folder, "tags.json: no split 'val': nothing names splits, so all images are 'train'", "val")
    (folder / "splits.json").write_text(json.dumps({"train": ["a.jpg"], "val": ["c.webp"], "none": []}))
    split = open_split(folder, "train")
    assert split.classes == ("dog", "bird") and [record.tags for record in split] == [(0,)]
    _fails(folder, "tags.json: no tags for image 'c.webp' of split 'val'", "val")
    assert open_split(folder, "val", require_tags=False).records[0].tags is None
    _fails(folder, "splits.json: split 'none' is empty", "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image:tags\na.jpg:cat\n", "tags.csv: the first line is 'image:tags', expected the columns image,tags"),
        ("", "tags.csv: the first line is '', expected the columns image,tags"),
        ("image,tags\na.jpg\n", "tags.csv: line 2 does not fill the columns image,tags"),
        ("image,tags\na.jpg,cat,dog\n", "tags.csv: line 2 does not fill"),
        ("image,tags\n,cat\n", "tags.csv: line 2 does not fill"),
        ("image,tags,split\na.jpg,cat,\n", "tags.csv: line 2 does not fill"),
        ("image,tags\na.jpg,cat\na.jpg,dog\n", "tags.csv: line 3 lists image 'a.jpg' a second time"),
        ("image,tags\nx.jpg,cat\n", "tags.csv: image 'x.jpg' is not in "),
        ("image,tags\n../a.jpg,cat\n", "tags.csv: image '../a.jpg' must be a path inside the folder"),
        ("image,tags\n/a.jpg,cat\n", "must be a path inside the folder"),
        ("image,tags\nsub\\b.png,cat\n", "must be a path inside the folder"),
        ("image,tags\na,cat\n", "tags.csv: image 'a' has none of the suffixes"),
        ("image,tags\na.jpg,\n", "tags.csv: 0 classes"),
        ("image,tags\n", "tags.csv: split 'train' is empty"),
        ("image,tags\na.jpg,background\n", "'background' is not a tag"),
    ],
)
def test_bad_csv(folder, text, message):
    (folder / "tags.csv").write_text(text)
    _fails(folder, message)


def test_clashes(folder):
    (folder / "tags.csv").write_text(CSV)
    (folder / "splits.json").write_text("{}")
    _fails(folder, "splits both in tags.csv and in splits.json")
    (folder / "splits.json").unlink()
    (folder / "labels.json").write_text("{}")
    _fails(folder, "both tags.csv and labels.json, expected one tag file")
    (folder / "labels.json").unlink()
    (folder / "classes.txt").write_text("cat\n")
    _fails(folder, r"tags.csv: image 'sub/b.png' has the tag 'dog', which is no class \(classes: cat\)")
    (folder / "classes.txt").unlink()
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    (folder / "tags.csv").write_text("image,tags\na.jpg,cat\na.png,cat\n")
    _fails(folder, "'a.png' and 'a.jpg' have the same name 'a'")


def test_folder_without_tags(folder):
    split = open_images(folder, ("cat",))
    assert [record.name for record in split] == ["a", "c", "unlisted"] and split.classes == ("cat",)
    assert all(record.tags is None and record.mask is None for record in split)
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    with pytest.raises(DataError, match="same name as a.jpg"):
        open_images(folder)
    with pytest.raises(DataError, match="no images"):
        open_images(folder / "masks")
    with pytest.raises(DataError, match="no such folder"):
        open_images(folder / "absent")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_spreadsheets_with_other_delimiters(folder, mark):
    text = '\ufeffimage,tags,split\na.jpg,cat,train\nsub/b.png,"cat, dog",train\n'
    (folder / "tags.csv").write_text(text.replace('"cat, dog"', "cat+dog").replace(",", mark).replace("+", ", "))
    assert [record.tags for record in open_split(folder, "train")] == [(0,), (0, 1)]


def test_no_header(folder):
    (folder / "tags.csv").write_text("a.jpg,cat\n")
    _fails(folder, r"tags.csv: the first line is 'a.jpg,cat', expected the columns image,tags or image,tags,split")


@pytest.mark.parametrize("tag", ["cat,dog", "cat|dog", "cat/dog", "cat\tdog"])
def test_a_tag_that_looks_like_several(folder, tag):
    (folder / "tags.csv").write_text(f'image,tags\na.jpg,"{tag}"\nunlisted.jpg,cat\n')
    _fails(folder, r"tags.csv: the tag 'cat.*dog' holds .*; if it is one class, list it in a classes.txt")
    (folder / "classes.txt").write_text(f"cat\n{tag}\n")
    assert open_split(folder, "train").classes == ("cat", tag)


def test_tags_that_differ_in_case(folder):
    (folder / "tags.csv").write_text("image,tags\na.jpg,Cat\nunlisted.jpg,cat\n")
    _fails(folder, r"tags.csv: the tags 'Cat' and 'cat' differ in case alone")


def test_names_in_the_other_unicode_form_on_the_disk(folder):
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    Image.new("RGB", (8, 6)).save(folder / f"{nfd}.jpg")
    (folder / "tags.csv").write_text(f"image,tags\n{nfc}.jpg,{nfc}\na.jpg,{nfd}\n", encoding="utf-8")
    split = open_split(folder, "train")
    assert split.classes == (nfc,) and [record.image.name for record in split] == [f"{nfd}.jpg", "a.jpg"]


def test_every_picture_is_taken_or_named(tmp_path):
    kinds = {"a.jpg": "JPEG", "b.tif": "TIFF", "c.jfif": "JPEG", "d.gif": "GIF", "more/e.jpg": "JPEG"}
    for name, kind in kinds.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name, kind)
    for name in ("._a.jpg", ".DS_Store", "f.heic", "g.HEIC", "tags.csv", "notes"):
        (tmp_path / name).write_bytes(b"no picture")
    split = open_images(tmp_path)
    assert [record.image.name for record in split] == ["a.jpg", "b.tif", "c.jfif", "d.gif"]
    assert all(read_image(record.image).shape == (6, 8, 3) for record in split)
    assert left_out(tmp_path, "left out: ") == "left out: 2 .heic, 1 folder, 1 without suffix"
    assert left_out(tmp_path / "more", "left out: ") == ""


@pytest.mark.parametrize(
    "tag, meant", [("Dog", "; 'dog' may be meant"), ("hosre", "; 'horse' may be meant"), ("car", "")]
)
def test_a_tag_that_is_no_class_names_the_nearest(folder, tag, meant):
    (folder / "classes.txt").write_text("horse\ndog\n")
    (folder / "tags.csv").write_text(f"image,tags\na.jpg,{tag}\n")
    _fails(folder, rf"image 'a.jpg' has the tag '{tag}', which is no class{meant} \(classes: horse, dog\)")
