"""CAM files: written for the images of a split, kept or made again, and read."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.cams import CARD, COARSE, Colours, built, folder_of_images

from camguide_fast.cams import multi_scale_cam, write_cams, write_masks
from camguide_fast.cams.cam_files import read_cam
from camguide_fast.data import Split, open_images, read_image, read_mask
from camguide_fast.errors import DataError, UserError


@pytest.fixture(scope="module")
def coarse():
    return built(COARSE)


def with_tags(split: Split, *tags: tuple[int, ...]) -> Split:
    return replace(split, records=tuple(replace(r, tags=t) for r, t in zip(split, tags, strict=True)))


def test_write_cams_given(tmp_path, coarse):
    card = replace(CARD, head="none")
    split = with_tags(open_images(folder_of_images(tmp_path / "in"), CARD.classes), (1,), (), (0, 2))
    nested = replace(split.records[0], name="deep/er/a")
    split = replace(split, records=(nested, *split.records[1:]))
    report = write_cams(coarse, card, split, tmp_path / "cams", scales=(1.0,), workers=0, progress=False)
    assert (report.written, report.kept, report.skipped) == (3, 0, [])
    keys, cam = read_cam(tmp_path / "cams/deep/er/a.npz", 3)
    image = torch.from_numpy(read_image(nested.image)).permute(2, 0, 1)
    assert keys.tolist() == [1] and cam.shape == (1, 40, 52) and cam.dtype == np.float16
    assert np.allclose(cam, multi_scale_cam(coarse, image, [1], scales=(1.0,)).numpy(), atol=1e-3)
    keys, cam = read_cam(tmp_path / "cams/b.npz", 3)
    assert keys.shape == (0,) and cam.shape == (0, 41, 52)
    assert read_cam(tmp_path / "cams/c.npz", 3)[0].tolist() == [0, 2]
    assert write_masks(tmp_path / "cams", split, tmp_path / "masks", 0.3) == 3
    mask = read_mask(tmp_path / "masks/deep/er/a.png", 3)
    assert mask.shape == (40, 52) and set(np.unique(mask)) == {0, 2}
    assert not read_mask(tmp_path / "masks/b.png", 3).any()


def test_write_cams_keeps_what_is_right_and_makes_the_rest_again(tmp_path, coarse):
    card = replace(CARD, head="none")
    split = with_tags(open_images(folder_of_images(tmp_path / "in"), CARD.classes), (1,), (0,), (2,))
    options = dict(scales=(1.0,), workers=0, progress=False)
    for rank in (0, 1):
        report = write_cams(coarse, card, split, tmp_path / "out", rank=rank, world=2, **options)
        assert report.written == (2, 1)[rank]
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert sorted(before) == ["a.npz", "b.npz", "c.npz"]  # nothing temporary stays
    (tmp_path / "out/b.npz").write_bytes((tmp_path / "out/b.npz").read_bytes()[:300])
    report = write_cams(coarse, card, split, tmp_path / "out", **options)
    assert (report.written, report.kept) == (1, 2)
    assert (tmp_path / "out/a.npz").stat().st_mtime_ns == before["a.npz"]
    read_cam(tmp_path / "out/b.npz", 3)
    changed = with_tags(split, (1,), (0, 1), (2,))  # a tag was corrected
    assert write_cams(coarse, card, changed, tmp_path / "out", **options).written == 1
    assert write_cams(coarse, card, changed, tmp_path / "out", **{**options, "scales": (0.5,)}).written == 3
    other = deepcopy(coarse)
    with torch.no_grad():
        other.classifier.weight[0, 0, 0, 0] += 1
    assert write_cams(other, card, changed, tmp_path / "out", **{**options, "scales": (0.5,)}).written == 3


def test_write_cams_predicted(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in (("black", (0, 0, 0)), ("green", (0, 200, 0)), ("red", (200, 0, 0))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    split = open_images(folder, CARD.classes)
    for scales, flip in (((0.5,), False), ((1.0,), True)):  # tags do not depend on the scales of the CAMs
        out = tmp_path / f"{scales[0]}"
        card = replace(CARD, tag_thresholds=(0.1, 0.1, 0.1))
        write_cams(Colours(), card, split, out, scales=scales, flip=flip, labels="predicted", workers=0)
        assert [read_cam(out / f"{n}.npz", 3)[0].tolist() for n in ("black", "green", "red")] == [[], [1], [0]]
    card = replace(CARD, tag_thresholds=(float("inf"), 0.1, 0.1))
    write_cams(Colours(), card, split, out, labels="predicted", workers=0)
    assert read_cam(out / "red.npz", 3)[0].tolist() == []


def test_write_cams_refuses(tmp_path, coarse):
    split = open_images(folder_of_images(tmp_path / "in"), CARD.classes)
    with pytest.raises(DataError, match=r"a\.jpg: no tags are known"):
        write_cams(coarse, CARD, split, tmp_path / "out")
    with pytest.raises(UserError, match=r"has 2 classes \(cat, dog\), the checkpoint 3 \(cat, dog, cow\)"):
        write_cams(coarse, CARD, replace(split, classes=("cat", "dog")), tmp_path / "out")
    with pytest.raises(UserError, match="no tag thresholds"):
        write_cams(coarse, replace(CARD, tag_thresholds=()), split, tmp_path / "out", labels="predicted")
    with pytest.raises(UserError, match="scales"):
        write_cams(coarse, CARD, split, tmp_path / "out", labels="predicted", scales=(0.0,))
    assert not (tmp_path / "out").exists()


def test_broken_image(tmp_path, coarse):
    folder = folder_of_images(tmp_path / "in")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:500])
    split = with_tags(open_images(folder, CARD.classes), (1,), (0,), (2,))
    options = dict(scales=(1.0,), workers=0, progress=False)
    with pytest.raises(DataError, match=r"b\.png"):
        write_cams(coarse, CARD, split, tmp_path / "out", **options)
    assert (tmp_path / "out/a.npz").is_file()
    report = write_cams(coarse, CARD, split, tmp_path / "out", skip_bad=True, **options)
    assert report.skipped == ["b"] and report.kept == 1 and report.written == 1
    with pytest.raises(DataError, match=r"b\.npz: no such CAM file"):
        write_masks(tmp_path / "out", split, tmp_path / "masks", 0.3)
    assert write_masks(tmp_path / "out", split, tmp_path / "masks", 0.3, skip_bad=True) == 2


def test_weights_that_are_not_finite(tmp_path, coarse):
    broken = deepcopy(coarse)
    broken.classifier.weight.data[0, 0] = float("nan")
    split = with_tags(open_images(folder_of_images(tmp_path / "in", ["a.jpg"]), CARD.classes), (1,))
    with pytest.raises(UserError, match="a: the maps of stage3 are not finite"):
        write_cams(broken, CARD, split, tmp_path / "out", workers=0, progress=False)


def test_read_cam_refuses(tmp_path):
    np.savez(tmp_path / "a.npz", keys=np.array([4]), cam=np.zeros((1, 2, 2), np.float16))
    with pytest.raises(DataError, match="class index 4, expected 0 to 2"):
        read_cam(tmp_path / "a.npz", 3)
    np.savez(tmp_path / "a.npz", keys=np.array([0, 1]), cam=np.zeros((1, 2, 2), np.float16))
    with pytest.raises(DataError, match=r"expected \[P\] and \[P, H, W\]"):
        read_cam(tmp_path / "a.npz", 3)
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable CAM file"):
        read_cam(tmp_path / "a.npz", 3)
