"""The command `infer`: masks of a folder of images."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.cams import CARD, COARSE, built, folder_of_images

from camguide_fast import infer as infer_module
from camguide_fast.cams import making
from camguide_fast.data import read_image, read_mask
from camguide_fast.errors import UserError
from camguide_fast.infer import Args, infer
from camguide_fast.models.checkpoint import save_model


@pytest.fixture(scope="module")
def coarse():
    return built(COARSE)


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
