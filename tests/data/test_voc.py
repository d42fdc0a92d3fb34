"""VOC trees and what all splits have in common."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camguide_fast.data import VOC_CLASSES, open_split, write_mask
from camguide_fast.errors import DataError


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "tree"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    names = [f"im{i}" for i in range(6)]
    for name in names:
        Image.new("RGB", (8, 6)).save(root / "JPEGImages" / f"{name}.jpg")
    write_mask(root / "SegmentationClass/im0.png", np.zeros((6, 8), np.uint8))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[:5]) + "\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("im5\n\n")
    (root / "classes.txt").write_text("dog\ncat\n")
    tags = [["cat"], ["dog"], [], ["dog", "cat", "dog"], ["cat"], ["dog"]]
    (root / "labels.json").write_text(json.dumps(dict(zip(names, tags, strict=True))))
    return root


def _xml(*names: str, head: str = "") -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>" for name in names
    )
    return f"<?xml version='1.0'?>{head}<annotation><filename>x</filename>{objects}</annotation>"


def _fails(root: Path, message: str, name: str = "train") -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_split(root, name)
    assert "\n" not in str(caught.value)


def test_tree_with_json(tree):
    split = open_split(tree, "train")
    assert (split.name, split.classes, len(split)) == ("train", ("dog", "cat"), 5)
    assert [record.tags for record in split] == [(1,), (0,), (), (0, 1), (1,)]
    assert split.labels.tolist() == [[0, 1], [1, 0], [0, 0], [1, 1], [0, 1]]
    assert split.records[0].mask == tree / "SegmentationClass/im0.png" and split.records[1].mask is None
    assert split.records[2].image == tree / "JPEGImages/im2.jpg"
    assert [record.name for record in open_split(str(tree), "val")] == ["im5"]


def test_json_without_class_file_sorts_the_tags(tree):
    (tree / "classes.txt").unlink()
    assert open_split(tree, "train").classes == ("cat", "dog")


def test_other_suffix(tree):
    (tree / "JPEGImages/im0.jpg").rename(tree / "JPEGImages/im0.PNG")
    assert open_split(tree, "train").records[0].image.name == "im0.PNG"


def test_sample_and_shard(tree):
    split = open_split(tree, "train:2")
    assert split.name == "train:2" and [record.name for record in split] == ["im0", "im2"]
    whole = open_split(tree, "train")
    assert [record.name for record in whole.sample(5)] == [record.name for record in whole]
    parts = [record.name for rank in range(2) for record in whole.shard(rank, 2)]
    assert parts == ["im0", "im2", "im4", "im1", "im3"]
    _fails(tree, r"'train:9' wants 9 of 5 images", "train:9")
    for name in ("train:0", "train:", "train:x", "train:-1", "train:2:1"):
        _fails(tree, "expected a name and a number", name)


def test_tree_with_xml(tree):
    (tree / "labels.json").unlink()
    (tree / "classes.txt").unlink()
    for i in range(5):
        (tree / f"Annotations/im{i}.xml").write_text(_xml("sheep", "cat", "sheep") if i else _xml())
    split = open_split(tree, "train")
    assert split.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert split.records[0].tags == () and split.records[1].tags == (7, 16)
    (tree / "classes.txt").write_text("sheep\ncat\n")
    assert open_split(tree, "train").records[1].tags == (0, 1)

    (tree / "Annotations/im1.xml").write_text(_xml("unicorn"))
    _fails(
        tree,
        r"Annotations/im1.xml: image 'im1' has the tag 'unicorn', which is no class \(classes: sheep, cat\)",
    )
    (tree / "Annotations/im1.xml").write_text(_xml(""))
    _fails(tree, "im1.xml: an object without a name")
    (tree / "Annotations/im1.xml").write_text("<annotation>")
    _fails(tree, "im1.xml: not valid XML")
    (tree / "Annotations/im1.xml").unlink()
    _fails(tree, "Annotations/im1.xml: no tags for image 'im1' of split 'train'")
    assert open_split(tree, "train", require_tags=False).records[1].tags is None


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE a [<!ENTITY x "cat"><!ENTITY y "&x;&x;&x;&x;">]>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
    ],
)
def test_xml_entities_are_refused(tree, head):
    (tree / "labels.json").unlink()
    (tree / "Annotations/im0.xml").write_text(_xml("&x;", head=head))
    _fails(tree, "im0.xml: declares XML entities")


def test_unknown_tags_raise_where_labels_are_asked_for(tree):
    table = json.loads((tree / "labels.json").read_text())
    del table["im3"]
    (tree / "labels.json").write_text(json.dumps(table))
    _fails(tree, "labels.json: no tags for image 'im3' of split 'train'")
    split = open_split(tree, "train", require_tags=False)
    assert split.records[3].tags is None
    with pytest.raises(DataError, match="im3.jpg: no tags are known"):
        _ = split.labels


def test_what_is_missing(tree, tmp_path):
    _fails(tmp_path / "nowhere", "nowhere: no such folder")
    _fails(tmp_path, "neither a VOC tree .* nor a tag file")
    _fails(tree, r"test.txt: no such split \(splits there: train, val\)", "test")
    (tree / "JPEGImages/im3.jpg").unlink()
    _fails(tree, r"train.txt: image 'im3' is not in .*JPEGImages")
    (tree / "ImageSets/Segmentation/train.txt").write_text("\n  \n")
    _fails(tree, "train.txt: the split is empty")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "labels.json",
            '{"im0": ["cow"]}',
            r"labels.json: image 'im0' has the tag 'cow', .*classes: dog, cat",
        ),
        ("labels.json", '{"im0": "cat"}', "labels.json: the value of 'im0' must be a list of strings"),
        ("labels.json", '{"im0": [1]}', "must be a list of strings"),
        ("labels.json", '{"im0": [], "im0": []}', "labels.json: 'im0' is listed twice"),
        ("labels.json", "[]", "expected a JSON object, found a list"),
        ("labels.json", '{\n"im0": ]', r"labels.json: not valid JSON \(line 2: "),
        ("classes.txt", "dog\ncat\ndog\n", "classes.txt: class 'dog' is listed twice"),
        ("classes.txt", "background\ndog\ncat\n", "classes.txt: 'background' is not a tag"),
        ("classes.txt", "\n", "classes.txt: 0 classes, expected 1 to 254"),
        ("classes.txt", "\n".join(map(str, range(255))), "classes.txt: 255 classes"),
        ("ImageSets/Segmentation/train.txt", "im0\nim0\n", "train.txt: image 'im0' is listed twice"),
        (
            "ImageSets/Segmentation/train.txt",
            "../im0\n",
            "train.txt: expected names or paths in the tree, found '../im0'",
        ),
        (
            "ImageSets/Segmentation/train.txt",
            "/a/im0.jpg /../im0.png\n",
            "train.txt: expected names or paths in the tree",
        ),
        ("ImageSets/Segmentation/train.txt", "im0 2\n", "train.txt: image 'im0 2' is not in"),
    ],
)
def test_bad_files(tree, file, text, message):
    (tree / file).write_text(text)
    _fails(tree, message)


def test_not_text(tree):
    (tree / "classes.txt").write_bytes(b"\xff\xfe\x00\x81")
    _fails(tree, "classes.txt: not UTF-8 text")


def test_byte_order_mark_is_no_part_of_a_name(tree):
    (tree / "classes.txt").write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\n")
    assert open_split(tree, "train").classes == ("dog", "cat")


def test_real_tree(voc):
    train, val = open_split(voc, "train"), open_split(voc, "val:20")
    assert (len(train), len(val)) == (986, 20)
    assert train.classes == ("cat", "cow", "dog", "horse", "sheep")
    assert train.labels.sum(1).min() >= 1 and all(record.mask for record in train)


@pytest.mark.parametrize(
    "line", ["im0.jpg", "im0  1", "im0 -1", "JPEGImages/im0.jpg", "/JPEGImages/im0.jpg /SegmentationClassAug/im0.png"]
)
def test_lists_as_the_field_has_them(tree, line):
    (tree / "SegmentationClassAug").mkdir()
    write_mask(tree / "SegmentationClassAug/im0.png", np.zeros((6, 8), np.uint8))
    (tree / "ImageSets/Segmentation/train.txt").write_text(f"{line}\nim1\n")
    split = open_split(tree, "train")
    assert [record.name for record in split] == ["im0", "im1"]
    folder = "SegmentationClassAug" if "Aug" in line else "SegmentationClass"
    assert split.records[0].mask == tree / folder / "im0.png" and split.records[1].mask is None


def test_masks_of_the_augmented_set(tree):
    (tree / "SegmentationClassAug").mkdir()
    for name in ("im0", "im1"):
        write_mask(tree / f"SegmentationClassAug/{name}.png", np.zeros((6, 8), np.uint8))
    first, second, *_ = open_split(tree, "train")
    assert (first.mask.parent.name, second.mask.parent.name) == ("SegmentationClass", "SegmentationClassAug")


CVAT = """<annotations><version>1.1</version>
  <image name="some/im0.jpg"><box label="cat" xtl="1"/><polygon label="dog"/></image>
  <image name="im1.jpg"/></annotations>"""


@pytest.mark.parametrize(
    "text, tags",
    [
        ("<annotation xmlns='http://x/voc'><object><name>cat</name></object></annotation>", (1,)),
        ("<annotation><objects><object><name>cat</name></object></objects></annotation>", (1,)),
        ("<annotations><annotation><object><name>cat</name></object></annotation></annotations>", (1,)),
        ("<annotation><!-- none --><size/></annotation>", ()),
        (CVAT, (0, 1)),
    ],
    ids=["namespace", "wrapped", "nested", "nothing there", "cvat"],
)
def test_dialects_of_xml(tree, text, tags):
    (tree / "labels.json").unlink()
    (tree / "ImageSets/Segmentation/train.txt").write_text("im0\n")
    (tree / "Annotations/im0.xml").write_text(text)
    assert open_split(tree, "train").records[0].tags == tags


@pytest.mark.parametrize(
    "text, message",
    [
        ("<html><body>404</body></html>", "im0.xml: its root is <html>, expected VOC's <annotation> or CVAT's"),
        ("<annotations/>", "im0.xml: its root is <annotations>, expected"),
        (CVAT.replace("im0", "im7"), "im0.xml: no <image> of its 2 is named 'im0'"),
        (CVAT.replace("im1", "im0"), "im0.xml: 2 <image> of its 2 is named 'im0'"),
        (CVAT.replace('label="cat" ', ""), "im0.xml: an object without a name"),
    ],
)
def test_xml_that_is_none_of_them(tree, text, message):
    (tree / "labels.json").unlink()
    (tree / "ImageSets/Segmentation/train.txt").write_text("im0\n")
    (tree / "Annotations/im0.xml").write_text(text)
    _fails(tree, message)


def test_names_in_either_unicode_form(tree):
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    Image.new("RGB", (8, 6)).save(tree / f"JPEGImages/{nfd}.jpg")
    (tree / "classes.txt").write_text(f"{nfd}\ndog\n")
    (tree / "labels.json").write_text(json.dumps({nfc: [nfc], "im1": [nfd]}))
    (tree / "ImageSets/Segmentation/train.txt").write_text(f"{nfd}\nim1\n")
    split = open_split(tree, "train")
    assert [(record.name, record.tags) for record in split] == [(nfc, (0,)), ("im1", (0,))]
    assert split.classes == (nfc, "dog") and split.records[0].image.is_file()
