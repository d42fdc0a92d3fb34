import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast import infer as infer_module
from camguide_fast.cams import class_maps, making, multi_scale_cam, write_cams, write_masks
from camguide_fast.cams.cam_files import read_cam
from camguide_fast.cams.multi_scale import mean_logits, merge_maps, scale_maps
from camguide_fast.data import Split, open_images, read_image, read_mask
from camguide_fast.errors import DataError, UserError
from camguide_fast.infer import Args, infer
from camguide_fast.models.checkpoint import ModelCard, save_model
from camguide_fast.models.input_norm import InputNorm

CARD = ModelCard("stage3", "resnet18", "lean", 16, 2, 1e-2, ("cat", "dog", "cow"), (0.0, 0.0, 0.0))


class Colours(torch.nn.Module):
    """A network that knows what it sees: class k's map is channel k of the image, minus the other two, at stride 16."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.backbone = torch.nn.Module()
        self.backbone.input = InputNorm((0.0,) * 3, (255.0,) * 3)

    def forward(self, image):
        image = torch.nn.functional.avg_pool2d(image, 16, ceil_mode=True)
        return self.scale * (2 * image - image.sum(1, keepdim=True))


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return CARD.build().eval()


@pytest.fixture(scope="module")
def coarse():
    torch.manual_seed(0)
    return replace(CARD, head="none").build().eval()


def photo(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def folder_of_images(path, names=("a.jpg", "b.png", "c.jpg"), size=(40, 52)):
    path.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = photo((size[0] + i, size[1]), i).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(path / name)
    return path


def with_tags(split: Split, *tags: tuple[int, ...]) -> Split:
    return replace(split, records=tuple(replace(r, tags=t) for r, t in zip(split, tags, strict=True)))


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


@pytest.fixture(scope="module")
def run(tmp_path_factory, coarse):
    """A run's folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "checkpoints/stage3.safetensors", coarse, replace(CARD, head="none"))
    return folder


def arguments(run, images, out, **changes) -> Args:
    changes = {"device": "cpu", "scales": (1.0,), **changes}
    return Args(images, out, **{"checkpoint": run / "checkpoints/stage3.safetensors"} | changes)


def test_command_writes_masks_and_overlays(run, tmp_path, capsys):
    folder = folder_of_images(tmp_path / "in")
    infer(arguments(run, folder, tmp_path / "out", overlay=True, threshold=0.4, closing=3))
    said = capsys.readouterr().out
    assert f"3 masks of stage3 (cat, dog, cow) are in {tmp_path / 'out'}" in said
    assert "labels: predicted; threshold: 0.4, from --threshold; scales: 1" in said
    for i, name in enumerate("abc"):
        with Image.open(tmp_path / "out" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (52, 40 + i)
        assert read_image(tmp_path / "out/overlays" / f"{name}.jpg").shape == (40 + i, 52, 3)


def test_command_finds_the_runs_thresholds_and_scales(run, tmp_path, capsys):
    folder = folder_of_images(tmp_path / "in", ["a.jpg"])
    infer(arguments(run, folder, tmp_path / "out"))
    assert "threshold: 0.15, the default, as" in capsys.readouterr().out
    entry = {"global": 0.3, "class-wise": [0.2, 0.3, 0.4], "fitted_on": "val"}
    (run / "thresholds.json").write_text(json.dumps({"stage3": entry}))
    (run / "config.json").write_text(json.dumps({"config": {"inference": {"scales": [0.5, 0.75]}}}))
    try:
        infer(arguments(run, folder, tmp_path / "out", scales=None))
        said = capsys.readouterr().out
        assert f"threshold: class-wise, fitted on val, from {run / 'thresholds.json'}; scales: 0.5 0.75" in said
        del entry["class-wise"]
        (run / "thresholds.json").write_text(json.dumps({"stage3": entry}))
        infer(arguments(run, folder, tmp_path / "out"))
        assert "threshold: 0.3, fitted on val" in capsys.readouterr().out
        for broken in ({"stage2": entry}, {"stage3": {"class-wise": [0.1]}}, {"stage3": {"global": 3}}, []):
            (run / "thresholds.json").write_text(json.dumps(broken))
            with pytest.raises(UserError, match=r"thresholds\.json"):
                infer(arguments(run, folder, tmp_path / "out"))
    finally:
        (run / "thresholds.json").unlink()
        (run / "config.json").unlink()


@pytest.mark.parametrize("kind", ["csv", "json", "stems"])
def test_command_with_given_tags(run, tmp_path, capsys, kind):
    folder = folder_of_images(tmp_path / "in", ["a.jpg", "b.png"])
    tags = tmp_path / ("tags.csv" if kind == "csv" else "tags.json")
    text = {
        "csv": "image,tags\na.jpg,dog\nb.png,\n",
        "json": '{"a.jpg": ["dog"], "b.png": []}',
        "stems": '{"a": ["dog"], "b": []}',
    }
    tags.write_text(text[kind])
    infer(arguments(run, folder, tmp_path / "out", tags=tags))
    said = capsys.readouterr().out
    assert "labels: given" in said and "1 of them are all background" in said
    assert set(np.unique(read_mask(tmp_path / "out/a.png", 3))) == {0, 2}


def test_masks_of_others_are_not_replaced(run, tmp_path):
    """`--out photos/masks` would be the truth's end."""
    folder = folder_of_images(tmp_path / "in")
    truth = tmp_path / "masks/b.png"
    truth.parent.mkdir()
    Image.fromarray(np.zeros((41, 52), np.uint8)).save(truth)
    before = truth.read_bytes()
    with pytest.raises(UserError, match="b.png: is there, and not a mask of this command"):
        infer(arguments(run, folder, truth.parent))
    assert truth.read_bytes() == before and [path.name for path in truth.parent.iterdir()] == ["b.png"]


def test_what_belongs_to_an_older_mask_goes_with_it(run, tmp_path):
    folder, out = folder_of_images(tmp_path / "in"), tmp_path / "out"
    infer(arguments(run, folder, out, overlay=True, scores=True, threshold=0.5))
    assert len(list(out.glob("overlays/*.jpg"))) == len(list(out.glob("scores/*.npz"))) == 3
    infer(arguments(run, folder, out, threshold=0.1))
    assert not list(out.glob("overlays/*.jpg")) and not list(out.glob("scores/*.npz"))


def test_mirror_images_as_in_the_run(run, tmp_path, monkeypatch):
    seen = []
    whole = making.each_cam
    monkeypatch.setattr(making, "each_cam", lambda *a: seen.append(a[3].flip) or whole(*a))
    folder, settings = folder_of_images(tmp_path / "in", ["a.jpg"]), run / "config.json"
    infer(arguments(run, folder, tmp_path / "with"))
    before = settings.read_bytes() if settings.exists() else None
    settings.write_text(json.dumps({"config": {"inference": {"flip": False, "scales": [1.0]}}}))
    infer(arguments(run, folder, tmp_path / "without"))
    settings.unlink() if before is None else settings.write_bytes(before)
    assert seen == [True, False]


def test_command_refuses(run, tmp_path):
    folder = folder_of_images(tmp_path / "in", ["a.jpg", "b.png"])
    (tmp_path / "tags.json").write_text('{"a.jpg": ["dog"]}')
    (tmp_path / "odd.json").write_text('{"a.jpg": ["horse"], "b.png": []}')
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    cases = [
        (dict(labels="given"), "holds no tag file"),
        (dict(tags=tmp_path / "tags.json"), "no tags for image 'b.png'"),
        (dict(tags=tmp_path / "odd.json"), "'horse', which is no class"),
        (dict(labels="predicted", tags=tmp_path / "tags.json"), "of no use"),
        (dict(threshold=0.1, thresholds=tmp_path / "t.json"), "expected one of them"),
        (dict(thresholds=tmp_path / "t.json"), "t.json"),
        (dict(threshold=1.5), "from 0 to 1, got 1.5"),
        (dict(closing=4), "odd number"),
        (dict(max_side=0), "--max-side"),
        (dict(workers=-1), '--workers: expected "auto" or at least 0, got -1'),
        (dict(scales=()), "scales"),
        (dict(images=tmp_path / "nowhere"), "no such folder"),
        (dict(images=tmp_path / "empty"), "no images"),
        (dict(checkpoint=run / "nothing.safetensors"), "no such checkpoint"),
        (dict(out=folder), "is the folder of the images"),
        (dict(out=tmp_path / "tags.json" / "x"), "cannot be made"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            infer(replace(arguments(run, folder, out), **change))
    assert not out.exists()


def test_command_line(run, tmp_path, monkeypatch, capsys):
    folder = folder_of_images(tmp_path / "in")
    (folder / "b.png").write_bytes(b"no image")

    def call(*more: str):
        command = ["infer", "--checkpoint", str(run / "checkpoints/stage3.safetensors"), "--images", str(folder)]
        monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out"), "--scales", "1.0", *more])
        infer_module.run_cli(infer_module.main)

    with pytest.raises(SystemExit) as stop:
        call()
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert err.splitlines()[-1].startswith(f"error: {folder / 'b.png'}: not a readable image")
    call("--skip-bad", "--workers", "0")
    said = capsys.readouterr().out
    assert "2 masks of stage3" in said and "1 images left out, not readable: b" in said


def test_module_runs():
    command = [sys.executable, "-m", "camguide_fast.infer", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--skip-bad" in done.stdout
