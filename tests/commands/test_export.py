"""What a run made, in the layouts that others read."""

import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast.cams.cam_files import ImageCams, save_cam
from camguide_fast.cams.thresholds import label_map
from camguide_fast.config import Config, Crf, Walk, to_dict
from camguide_fast.data import VOC_CLASSES, make_demo, open_split, read_image, read_mask, write_mask
from camguide_fast.errors import DataError, UserError
from camguide_fast.export import Args, export
from camguide_fast.files import write_json


@pytest.fixture
def run(tmp_path) -> Path:
    """A run on three demo images: ramps for walked CAMs, their middle as final masks."""
    data, run = make_demo(tmp_path / "data", train=3, val=1, size=32), tmp_path / "run"
    config = Config(walk=Walk(crf=Crf(iterations=0)))
    write_json(run / "config.json", {"data": str(data), "config": to_dict(config)})
    (run / "masks/final/train").mkdir(parents=True)
    for record in open_split(data, "train"):
        with Image.open(record.image) as file:
            width, height = file.size
        cam = (np.linspace(0, 1, width) * np.ones((1, height, 1))).astype(np.float16)
        keys = np.array(record.tags[:1], np.int64)
        save_cam(run / f"cams/walk/train/{record.name}.npz", ImageCams("", torch.zeros(0), keys, cam), "")
        write_mask(run / f"masks/final/train/{record.name}.png", label_map(cam, keys, 0.5))
    return run


def test_voc_tree(run, tmp_path, capsys):
    export(Args("voc", run, tmp_path / "out"))
    out, split = tmp_path / "out", open_split(tmp_path / "data", "train")
    assert (out / "classes.txt").read_text().split() == list(split.classes)
    assert (out / "ImageSets/Segmentation/train.txt").read_text().split() == [r.name for r in split]
    for record in split:
        assert (out / f"JPEGImages/{record.name}.jpg").read_bytes() == record.image.read_bytes()
        pseudo = out / f"SegmentationClassPseudo/{record.name}.png"
        assert np.array_equal(read_mask(pseudo, 5), read_mask(run / f"masks/final/train/{record.name}.png", 5))
    assert "3 images and masks are in" in capsys.readouterr().out


def test_void_where_thresholds_disagree(run, tmp_path):
    export(Args("voc", run, tmp_path / "out", void=(0.25, 0.75)))
    for record in open_split(tmp_path / "data", "train"):
        mask = read_mask(tmp_path / f"out/SegmentationClassPseudo/{record.name}.png", 5)
        with np.load(run / f"cams/walk/train/{record.name}.npz") as file:
            ramp = file["cam"][0].astype(np.float32)
        label = record.tags[0] + 1
        assert np.array_equal(mask, np.where(ramp > 0.75, label, np.where(ramp > 0.25, 255, 0)))


def test_irn_layout(run, tmp_path):
    export(Args("irn", run, tmp_path / "out"))
    with np.load(tmp_path / "out/demo_train_00000.npz", allow_pickle=False) as file:
        assert set(file) == {"keys", "cam", "high_res"}


def test_server(run, tmp_path):
    with pytest.raises(DataError, match="is none of VOC's 20 classes"):
        export(Args("server", run, tmp_path / "out"))
    data = tmp_path / "data"
    names = [VOC_CLASSES[i] for i in (7, 2, 19, 0, 14)]  # not in VOC's order
    (data / "classes.txt").write_text("\n".join(names) + "\n")
    (data / "labels.json").unlink()
    for record in open_split(data, "train", require_tags=False):
        assert record.tags is None  # a test split has no tags
    export(Args("server", run, tmp_path / "out"))
    with tarfile.open(tmp_path / "out/results.tgz") as archive:
        found = {Path(name).name: name for name in archive.getnames() if name.endswith(".png")}
        assert set(found) == {f"demo_train_0000{i}.png" for i in range(3)}
        path = found["demo_train_00001.png"]
        assert path == "results/VOC2012/Segmentation/comp6_test_cls/demo_train_00001.png"
        archive.extractall(tmp_path / "got", filter="data")
    before = read_mask(run / "masks/final/train/demo_train_00001.png", 5)
    sent = read_mask(tmp_path / "got" / path, 20)
    (label,) = set(np.unique(before)) - {0}
    assert set(np.unique(sent)) == {0, VOC_CLASSES.index(names[label - 1]) + 1}
    assert np.array_equal(sent > 0, before > 0)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(split="val"), "name the split in --inference.splits"),
        (dict(run=Path("nowhere")), r"nowhere/config\.json"),
        (dict(void=(0.5, 0.2)), "--void: expected two thresholds"),
        (dict(kind="irn", void=(0.1, 0.2)), "--void"),
    ],
)
def test_refuses(run, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        export(replace(Args("voc", run, tmp_path / "out"), **change))


def tagged_run(root: Path, pictures: dict[str, tuple[Image.Image, dict]], mask) -> Path:
    """A run on pictures {name: (picture, how it is saved)}, all tagged with a kitten; `mask(record)`: its masks."""
    data, run = root / "data", root / "run"
    data.mkdir()
    for name, (picture, settings) in pictures.items():
        picture.save(data / name, **settings)
    (data / "tags.csv").write_text("image,tags\n" + "".join(f"{name},kätzchen\n" for name in pictures), "utf-8")
    write_json(run / "config.json", {"data": str(data), "config": to_dict(Config())})
    (run / "masks/final/train").mkdir(parents=True)
    for record in open_split(data, "train"):
        write_mask(run / f"masks/final/train/{record.name}.png", mask(record))
    return run


def test_photographs_are_exported_upright(tmp_path):
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:8, :48] = 255
    pictures = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pictures[f"{orientation}.jpg"] = Image.fromarray(pixels), {"exif": exif}
    run = tagged_run(tmp_path, pictures, lambda record: (read_image(record.image)[..., 0] > 128).astype(np.uint8))
    export(Args("voc", run, tmp_path / "out"))
    for name in pictures:
        with Image.open(tmp_path / "out/JPEGImages" / name) as file:
            assert file.getexif().get(0x0112, 1) == 1
            photo = np.array(file)[..., 0] > 128  # as a reader sees it that knows nothing of EXIF
        mask = read_mask(tmp_path / f"out/SegmentationClassPseudo/{name[0]}.png", 1, photo.shape)
        assert (photo == mask).mean() > 0.97
    plain = tmp_path / "out/JPEGImages/1.jpg"
    assert plain.read_bytes() == (tmp_path / "data/1.jpg").read_bytes()  # nothing is compressed twice without need


def test_names_with_spaces_come_back(tmp_path):
    names = ("IMG 0001", "rübe 比", "line\u2028separator")
    pictures = {f"{name}.jpg": (Image.new("RGB", (60, 40)), {}) for name in names}
    run = tagged_run(tmp_path, pictures, lambda _: np.ones((40, 60), np.uint8))
    export(Args("voc", run, tmp_path / "out"))
    split = open_split(tmp_path / "out", "train", require_tags=False)
    assert [record.name for record in split] == list(names)
    assert (tmp_path / "out/classes.txt").read_text("utf-8") == "kätzchen\n"


def test_class_names_are_utf8_in_any_locale(tmp_path):
    run = tagged_run(tmp_path, {"a.jpg": (Image.new("RGB", (8, 8)), {})}, lambda _: np.ones((8, 8), np.uint8))
    save_cam(
        run / "cams/walk/train/a.npz", ImageCams("", torch.zeros(0), np.array([0]), np.ones((1, 8, 8), np.float16)), ""
    )
    command = [
        sys.executable,
        "-X",
        "utf8=0",
        "-m",
        "camguide_fast.export",
        "irn",
        "--run",
        run,
        "--out",
        tmp_path / "out",
    ]
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(list(map(str, command)), check=True, env=environment)
    assert (tmp_path / "out/classes.txt").read_text("utf-8") == "kätzchen\n"
